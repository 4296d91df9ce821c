_base_ = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(type='bnn_plugins.BNNFPN', method=method))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
