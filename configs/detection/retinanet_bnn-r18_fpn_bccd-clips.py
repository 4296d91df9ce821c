# Frames one by one, without memory: what retinanet_bnn-r18_fpn-convlstm_bccd-clips.py is compared with.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small.py', '../_base_/datasets/bccd_clips.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method, base_channels=32),
    neck=dict(type='bnn_plugins.BNNFPN', method=method, in_channels=[32, 64, 128, 256]))
max_epochs = 8
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=max_epochs, eta_min_ratio=0.01, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=2e-3))
