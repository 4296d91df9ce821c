# The towers of the head are binary, too: its two predictions stay real. Norms, because sums of signs need them.
_base_ = './retinanet_bnn-r18_fpn_bccd.py'
model = dict(
    bbox_head=dict(
        _delete_=True,
        type='bnn_plugins.binarized',
        method='reactnet',
        module=dict(_base_.model.bbox_head, norm_cfg=dict(type='BN', requires_grad=True))))
