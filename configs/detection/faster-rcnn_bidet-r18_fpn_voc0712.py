# BiDet (arXiv 2003.03963) in a Faster R-CNN with a feature pyramid; the published one reads one map of a ResNet-18.
_base_ = 'mmdet::pascal_voc/faster-rcnn_r50_fpn_1x_voc0712.py'
binary = dict(method='bireal', pad_value=-1)
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', depth=18, frozen_stages=-1, norm_eval=False, init_cfg=None, **binary),
    neck=dict(type='bnn_plugins.BNNFPN', in_channels=[64, 128, 256, 512], **binary),
    rpn_head=dict(type='bnn_plugins.BNNRPNHead', **binary),
    roi_head=dict(type='bnn_plugins.BiDetRoIHead', bidet=dict(information=0.1, prior=0.2, start=0.5)))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=5, norm_type=2))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
