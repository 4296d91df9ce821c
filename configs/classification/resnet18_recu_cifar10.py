# ReCU (arXiv 2103.12369). Published: 92.8.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=18, method='recu', skips='single', shortcut='pad',
                  stem_act=False),
    head=dict(num_classes=_base_.num_classes, norm=True))
