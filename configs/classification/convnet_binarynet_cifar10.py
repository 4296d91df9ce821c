# BinaryNet (arXiv 1602.02830): its own network, all layers binary, squared hinge loss, no augmentation. Published: 89.85.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/adam_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=dict(_base_.data_preprocessor, crop_padding=0, flip=False),
    backbone=dict(type='bnn_plugins.BNNConvNet', method=dict(type='binarynet')),
    head=dict(num_classes=_base_.num_classes, method=dict(type='binarynet'), loss=dict(type='bnn_plugins.SquaredHinge')))
max_epochs = 500
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_dataloader = dict(batch_size=50)
