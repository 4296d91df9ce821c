# Expanding-and-shrinking (arXiv 2503.23709), tau=4.
_base_ = './resnet20_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=4)))
