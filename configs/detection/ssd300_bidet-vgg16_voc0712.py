# BiDet (arXiv 2003.03963) with shortcuts around the convolutions of its VGG16: SSD300, predictions stay real, Adam from 1e-3.
_base_ = 'mmdet::pascal_voc/ssd300_voc0712.py'
binary = dict(method='bireal', pad_value=-1)
model = dict(
    backbone=dict(_delete_=True, type='bnn_plugins.BNNSSDVGG', **binary),
    neck=dict(conv_cfg=dict(type='bnn_plugins.BinaryConv2d', **binary), norm_cfg=dict(type='BN'), act_cfg=None),
    bbox_head=dict(type='bnn_plugins.BiDetSSDHead', bidet=dict(information=0.1, prior=0.2, start=0.5)))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='Adam', lr=1e-3), clip_grad=dict(max_norm=5, norm_type=2))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
