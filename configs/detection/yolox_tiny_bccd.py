# The float twin of yolox_bnn-tiny_bccd.py, trained from scratch.
_base_ = [
    '../_base_/models/yolox_tiny.py', '../_base_/datasets/bccd.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
