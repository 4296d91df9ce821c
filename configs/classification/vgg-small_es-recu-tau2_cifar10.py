# Expanding-and-shrinking (arXiv 2503.23709), tau=2.
_base_ = './vgg-small_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=2)))
