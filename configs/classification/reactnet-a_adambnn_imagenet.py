# AdamBNN (arXiv 2106.11309): a learning rate of 1.25e-3. Published: 70.5.
_base_ = './reactnet-a_reactnet_imagenet.py'
model = dict(backbone=dict(method=dict(type='adambnn')))
optim_wrapper = dict(optimizer=dict(lr=1.25e-3))
