# Adam with a short warm-up and cosine; the steps of the recurrence under bfloat16, which needs no loss scale.
max_iters = 2000
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=500)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=50, end=max_iters, eta_min=0),
]
optim_wrapper = dict(
    type='bnn_plugins.BFloat16OptimWrapper',
    constructor='bnn_plugins.BinaryOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=5e-3),
    clip_grad=dict(max_norm=5.0, norm_type=2))
auto_scale_lr = dict(enable=False, base_batch_size=32)
