# RBNN (arXiv 2009.13055): shortcuts around two convolutions, binary where the shape changes. Published: 92.2.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=18, method='rbnn', skips='single', shortcut='binary',
                  stem_act=False),
    head=dict(num_classes=_base_.num_classes, norm=True))
max_epochs = 1000
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
