_base_ = './retinanet_r18-half_fpn_raccoon.py'
method = dict(type='reactnet')
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method),
    neck=dict(type='bnn_plugins.BNNFPN', method=method))
