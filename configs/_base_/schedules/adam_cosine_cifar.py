# Adam with warm-up and cosine, no decay: for methods that have published no recipe for CIFAR-10.
max_epochs = 400
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='bnn_plugins.BinaryOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=3e-3))
auto_scale_lr = dict(enable=False, base_batch_size=256)
