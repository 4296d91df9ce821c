_base_ = './retinanet_r18_fpn_digits.py'
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method),
    neck=dict(type='bnn_plugins.BNNFPN', method=method))
