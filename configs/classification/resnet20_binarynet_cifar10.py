# BinaryNet (arXiv 1602.02830) on the network of the others.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/adam_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=20, method='binarynet'),
    head=dict(num_classes=_base_.num_classes))
