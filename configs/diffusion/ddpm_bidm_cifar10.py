# BiDM (arXiv 2412.05926) on the UNet of DDPM; the float twin is trained first where there is none.
_base_ = './ddpm_reactnet_cifar10.py'
model = dict(method='bidm', cross_timestep=dict(buckets=100, initial=0.0))
train = dict(
    output_dir='work_dirs/ddpm_bidm_cifar10', teacher_model='work_dirs/ddpm_float_cifar10',
    teacher_config='{{ fileDirname }}/ddpm_float_cifar10.py', spd_weight=1e-2)
