# IDa-Det (arXiv 2210.03477): the float twin, which is trained first, teaches where both differ most.
_base_ = ['./retinanet_bnn-r18_fpn_bccd.py', '../_base_/recipes/float_start.py', '../_base_/recipes/teacher_ida.py']
float_twin = dict(
    config='configs/detection/retinanet_r18_fpn_bccd.py', checkpoint='work_dirs/retinanet_r18_fpn_bccd/epoch_40.pth')
