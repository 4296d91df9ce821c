# XNOR-Net (arXiv 1603.05279) with the shortcuts of Bi-Real Net. Published, without these: 51.2.
_base_ = './resnet18_bireal_imagenet.py'
model = dict(backbone=dict(method='xnor'))
