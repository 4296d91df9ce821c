# ReCU (arXiv 2103.12369). Published: 87.5.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=20, method='recu'),
    head=dict(num_classes=_base_.num_classes, norm=True))
