# The float twin of retinanet_bnn-r18-half_fpn_raccoon.py: the same schedule, trained from scratch. Half of the channels, since
# there are 140 photographs; P4 to P6, since the animals are large.
_base_ = [
    '../_base_/models/retinanet_r18_fpn_small.py', '../_base_/datasets/raccoon.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
model = dict(
    backbone=dict(base_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256], start_level=2, num_outs=3),
    bbox_head=dict(num_classes=1, anchor_generator=dict(strides=[16, 32, 64])))
