# BinaryConnect (arXiv 1511.00363), stochastic: binary weights in every layer. Published: 91.73 (on whitened images).
_base_ = './convnet_binarynet_cifar10.py'
method = dict(type='binaryconnect', stochastic=True)
model = dict(backbone=dict(method=method), head=dict(method=method))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
