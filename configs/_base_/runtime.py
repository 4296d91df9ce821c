# mmdet's default runtime, with the schedules of the binarizers, exact resume, and a process group that works without a GPU.
default_scope = 'mmdet'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook'), dict(type='bnn_plugins.EpochSeedHook'),
                dict(type='bnn_plugins.SyncStatisticsHook')]

sync_bn = 'torch'  # on several GPUs: a detector has few images on each

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))

vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
