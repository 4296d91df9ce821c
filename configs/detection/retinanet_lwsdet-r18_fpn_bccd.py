# LWS-Det (CVPR 2021): searched weights, supervised layer by layer by the float twin, which is trained first.
_base_ = ['./retinanet_bnn-r18_fpn_bccd.py', '../_base_/recipes/float_start.py', '../_base_/recipes/teacher_lws.py']
method = 'lwsdet'
model = dict(backbone=dict(method=method), neck=dict(method=method))
float_twin = dict(
    config='configs/detection/retinanet_r18_fpn_bccd.py', checkpoint='work_dirs/retinanet_r18_fpn_bccd/epoch_40.pth')
