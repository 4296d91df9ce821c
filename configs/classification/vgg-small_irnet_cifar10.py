# IR-Net (arXiv 1909.10788): 300 epochs from a learning rate of 0.007. Published: 90.4.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNVGGSmall', method=dict(type='irnet', t_min=1e-1)),
    head=dict(num_classes=_base_.num_classes, pool='flatten', pixels=16))
max_epochs = 300
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(lr=0.007, weight_decay=1e-4))
train_dataloader = dict(batch_size=128)
