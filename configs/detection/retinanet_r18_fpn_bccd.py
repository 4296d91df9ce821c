# The float twin of retinanet_bnn-r18_fpn_bccd.py: the same schedule, trained from scratch.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small.py', '../_base_/datasets/bccd.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
