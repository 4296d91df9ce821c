# The path aggregation network is converted: its convolutions are binary, in mmdet's order.
_base_ = './retinanet_r18_pafpn_bccd.py'
method = 'reactnet'
model = dict(
    backbone=dict(type='bnn_plugins.BNNResNet', method=method),
    neck=dict(_delete_=True, type='bnn_plugins.binarized', method=method, module=_base_.model.neck))
