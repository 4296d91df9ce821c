# Expanding-and-shrinking (arXiv 2503.23709), tau=2.
_base_ = './resnet20_bireal_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=2)))
