# Adam with a linear decay to zero: the recipe of Bi-Real Net, ReActNet and AdamBNN. 256 epochs, batch 512.
max_epochs = 256
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1.0, end_factor=0.0, by_epoch=True, begin=0, end=max_epochs, convert_to_iter_based=True)
]
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='bnn_plugins.BinaryOptimWrapperConstructor',
    optimizer=dict(type='Adam', lr=1e-3))
auto_scale_lr = dict(enable=False, base_batch_size=512)
