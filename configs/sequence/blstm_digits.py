# Digits of scikit-learn row by row: nothing to download, trained in seconds.
_base_ = [
    '../_base_/datasets/digits_classification.py', '../_base_/schedules/adam_cosine_cifar.py',
    '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='bnn_plugins.BNNRows', row=_base_.image_size,
        rnn=dict(type='bnn_plugins.BinaryLSTM', hidden_size=128, method='reactnet')),
    head=dict(num_classes=_base_.num_classes, norm=True))
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=True, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=2, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
