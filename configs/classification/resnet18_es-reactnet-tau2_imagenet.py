# Expanding-and-shrinking (arXiv 2503.23709), tau=2. Published: 68.0.
_base_ = './resnet18_reactnet_imagenet.py'
model = dict(backbone=dict(expand=dict(tau=2)))
