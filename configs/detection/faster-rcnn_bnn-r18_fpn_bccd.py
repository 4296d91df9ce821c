_base_ = './faster-rcnn_r18_fpn_bccd.py'
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method),
    neck=dict(type='bnn_plugins.BNNFPN', method=method))
