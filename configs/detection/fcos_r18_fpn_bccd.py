# The float twin of fcos_bnn-r18_fpn_bccd.py: FCOS with the improvements of its authors (centre sampling, normalised distances,
# centre-ness on the regression branch, GIoU), trained from scratch.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small.py', '../_base_/datasets/bccd.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
model = dict(
    type='FCOS',
    neck=dict(add_extra_convs='on_output'),
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=3,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        strides=[8, 16, 32, 64],
        # Distances to the sides of a box on images of 320x240: platelets (16 to 24 pixels across) are left to P3, red cells
        # (40 to 60) to P4, white cells (70 to 130) to P5 and P6.
        regress_ranges=((-1, 24), (24, 48), (48, 96), (96, 1e8)),
        center_sampling=True,
        norm_on_bbox=True,
        centerness_on_reg=True,
        conv_bias=True,
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='GIoULoss', loss_weight=1.0),
        loss_centerness=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)),
    train_cfg=None,
    test_cfg=dict(nms=dict(type='nms', iou_threshold=0.6)))
