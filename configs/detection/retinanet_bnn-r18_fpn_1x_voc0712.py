_base_ = 'mmdet::pascal_voc/retinanet_r50_fpn_1x_voc0712.py'
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', depth=18, method=method, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(type='bnn_plugins.BNNFPN', method=method, in_channels=[64, 128, 256, 512]))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
