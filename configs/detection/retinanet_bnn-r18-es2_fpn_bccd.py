# Expanding-and-shrinking: as many weights and operations as retinanet_bnn-r18_fpn_bccd.py.
_base_ = './retinanet_bnn-r18_fpn_bccd.py'
model = dict(backbone=dict(expand=dict(tau=2)), neck=dict(expand=dict(tau=2)))
