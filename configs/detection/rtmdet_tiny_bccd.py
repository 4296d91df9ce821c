# The float twin of rtmdet_bnn-tiny_bccd.py, trained from scratch.
_base_ = [
    '../_base_/models/rtmdet_tiny.py', '../_base_/datasets/bccd.py', '../_base_/schedules/adamw_scratch.py',
    '../_base_/runtime.py'
]
# The towers of all levels share their convolutions.
optim_wrapper = dict(paramwise_cfg=dict(bypass_duplicate=True))
