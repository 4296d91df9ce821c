# The towers of the head are binary, too: its two predictions stay real. Norms, because sums of signs need them.
_base_ = './retinanet_bnn-r18_fpn_bccd.py'
model = dict(
    bbox_head=dict(
        _delete_=True,
        type='bnn_plugins.binarized',
        method='reactnet',
        module=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=64,
            stacked_convs=2,
            feat_channels=64,
            norm_cfg=dict(type='BN', requires_grad=True),
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=2,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64]),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0], target_stds=[1.0, 1.0, 1.0, 1.0]),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0))))
