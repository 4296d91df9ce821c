# BiDet (arXiv 2003.03963) from scratch: its two losses from half of the training on.
_base_ = './faster-rcnn_r18_fpn_bccd.py'
method = 'bireal'
binary = dict(method=method, pad_value=-1)
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', **binary),
    neck=dict(type='bnn_plugins.BNNFPN', **binary),
    rpn_head=dict(type='bnn_plugins.BNNRPNHead', **binary),
    roi_head=dict(type='bnn_plugins.BiDetRoIHead', bidet=dict(information=0.1, prior=0.2, start=0.5)))
