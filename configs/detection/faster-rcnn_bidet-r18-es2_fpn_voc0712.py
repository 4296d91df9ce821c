# BiDet with expanding-and-shrinking (arXiv 2503.23709): the weights and operations of faster-rcnn_bidet-r18_fpn_voc0712.py.
_base_ = './faster-rcnn_bidet-r18_fpn_voc0712.py'
model = dict(backbone=dict(expand=dict(tau=2)), neck=dict(expand=dict(tau=2)))
