# IR-Net (arXiv 1909.10788): 400 epochs, batch 128, a norm in front of the classifier. Published: 86.5.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=20, method=dict(type='irnet', t_min=1e-3), shortcut='slice'),
    head=dict(num_classes=_base_.num_classes, norm=True))
max_epochs = 400
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
train_dataloader = dict(batch_size=128)
