# RepTran (arXiv 2207.09049), tau=2. Published: 88.97.
_base_ = './resnet20_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=2, style='rep')))
