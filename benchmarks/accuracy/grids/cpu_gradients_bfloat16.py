# As cpu_gradients_float32, with bfloat16 gradients.
_base_ = 'cpu_gradients_float32.py'
options = {
    'custom_hooks': [dict(type='bnn_plugins.BinaryTrainingHook', gradients='bfloat16'), dict(type='bnn_plugins.EpochSeedHook'),
                     dict(type='bnn_plugins.SyncStatisticsHook')],
}
