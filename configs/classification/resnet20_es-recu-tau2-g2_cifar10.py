# Expanding-and-shrinking with binary group convolutions (arXiv 2503.23709, variant c).
_base_ = './resnet20_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=2, groups=2)))
