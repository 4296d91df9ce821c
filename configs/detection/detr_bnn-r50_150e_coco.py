# DETR (arXiv 2005.12872) with a binary encoder; backbone, decoder and predictions stay real. Its twin is mmdet's config.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
method = 'reactnet'
model = dict(
    _delete_=True,
    type='bnn_plugins.binarized',
    method=method,
    rules=[('backbone.*', 'float'), ('bbox_head.*', 'float'), ('decoder.*', 'float'), ('neck.*', 'float')],
    module=dict(_base_.model))
custom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook')]
