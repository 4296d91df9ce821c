# RepTran (arXiv 2207.09049), tau=4.
_base_ = './resnet20_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=4, style='rep')))
