# Backbone and neck are converted; what the report keeps real (stem, depthwise layers, gates) stays real.
_base_ = './rtmdet_tiny_bccd.py'
method = 'reactnet'
model = dict(
    backbone=dict(_delete_=True, type='bnn_plugins.binarized', method=method, module=_base_.model.backbone),
    neck=dict(_delete_=True, type='bnn_plugins.binarized', method=method, module=_base_.model.neck))
