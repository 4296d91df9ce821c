# Bi-Real Net (arXiv 1808.00278) of 50 layers. Published: 62.6.
_base_ = './resnet18_bireal_imagenet.py'
model = dict(backbone=dict(_delete_=True, type='bnn_plugins.BNNBiReal50', out_indices=(3,), pool_last=True))
