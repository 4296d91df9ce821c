# BiDet with expanding-and-shrinking (arXiv 2503.23709): as many weights and operations as ssd300_bidet-vgg16_voc0712.py.
_base_ = './ssd300_bidet-vgg16_voc0712.py'
model = dict(backbone=dict(expand=dict(tau=2)), neck=dict(conv_cfg=dict(expand=dict(tau=2, style='drop_in'))))
