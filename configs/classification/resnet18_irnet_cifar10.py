# IR-Net (arXiv 1909.10788): shortcuts around two convolutions. Published: 91.5.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=18, method='irnet', skips='single', shortcut='strided',
                  stem_act=False),
    head=dict(num_classes=_base_.num_classes, norm=True))
max_epochs = 400
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
train_dataloader = dict(batch_size=128)
