# The float twin of retinanet_bnn-r18_fpn_digits.py: half the width of ResNet-18, anchors of the size of the digits.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small.py', '../_base_/datasets/digits.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], num_outs=3),
    bbox_head=dict(
        num_classes=10,
        # Digits are 20 to 48 pixels high and 1.0 to 2.4 times as high as wide.
        anchor_generator=dict(ratios=[1.2, 1.9], strides=[8, 16, 32])))

max_epochs = 16
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, T_max=max_epochs, eta_min_ratio=0.01, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=3e-3))
auto_scale_lr = dict(base_batch_size=16)
