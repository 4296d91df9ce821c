# Class-conditional: the UNet is told which digit to draw. `bnn sample work_dirs/ddpm_reactnet-classes_digits --classes 3 7`
_base_ = './ddpm_reactnet_digits.py'
model = dict(num_class_embeds=10)
pipeline = dict(type='ClassConditionalPipeline')
train = dict(output_dir='work_dirs/ddpm_reactnet-classes_digits')
