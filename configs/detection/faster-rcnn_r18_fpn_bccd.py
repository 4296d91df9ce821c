# The float twin of the binary Faster R-CNNs on BCCD, trained from scratch.
_base_ = [
    '../_base_/models/faster-rcnn_r18_fpn_small.py', '../_base_/datasets/bccd.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
