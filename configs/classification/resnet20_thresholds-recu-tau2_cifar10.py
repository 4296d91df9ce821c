# The control experiment of expanding: the base network with two thresholds in front of each sign.
_base_ = './resnet20_recu_cifar10.py'
model = dict(backbone=dict(expand=dict(style='thresholds', tau=2)))
