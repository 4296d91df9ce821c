# XNOR-Net (arXiv 1603.05279), which pools before a norm, with the shortcuts of Bi-Real Net.
_base_ = './resnet18_bireal_imagenet.py'
model = dict(backbone=dict(method='xnor', pool_last=False))
