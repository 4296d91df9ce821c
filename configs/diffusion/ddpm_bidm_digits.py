# BiDM (arXiv 2412.05926): its layer, the cross-timestep connection, space patched distillation from the float twin, which is
# trained first where there is none; the twin's prediction is a second target, with less variance than the noise.
_base_ = './ddpm_reactnet_digits.py'
model = dict(method='bidm', cross_timestep=dict(buckets=100, initial=0.0))
train = dict(
    output_dir='work_dirs/ddpm_bidm_digits', teacher_model='work_dirs/ddpm_float_digits',
    teacher_config='{{ fileDirname }}/ddpm_float_digits.py', teacher_weight=1.0, spd_weight=1e-2)
