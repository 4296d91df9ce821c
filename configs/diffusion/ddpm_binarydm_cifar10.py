# BinaryDM (arXiv 2404.05662) on the UNet of DDPM: two bases in the outer blocks, activations of 4 bits, low-rank mimicking of
# the float twin, which is trained first where there is none.
_base_ = './ddpm_reactnet_cifar10.py'
model = dict(
    method=dict(type='binarydm', a_bits=4, _delete_=True),
    block_methods=dict(mid_block=dict(type='binarydm', a_bits=4, order=1)))
train = dict(
    output_dir='work_dirs/ddpm_binarydm_cifar10', teacher_model='work_dirs/ddpm_float_cifar10',
    teacher_config='{{ fileDirname }}/ddpm_float_cifar10.py', lrm_weight=1e-4)
