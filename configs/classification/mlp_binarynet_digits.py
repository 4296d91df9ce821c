# BinaryNet's MLP (arXiv 1602.02830), small, on small digits.
_base_ = [
    '../_base_/datasets/digits_classification.py', '../_base_/schedules/adam_cosine_cifar.py',
    '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNMLP', in_features=256, width=256, method='binarynet'),
    head=dict(num_classes=_base_.num_classes, method='binarynet', loss=dict(type='bnn_plugins.SquaredHinge')))
max_epochs = 100
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
