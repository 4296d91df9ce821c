# ReCU (arXiv 2103.12369), one stage: SGD, 200 epochs, batch 512; norms start at 1e-8, as released. Published: 61.0.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/sgd_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNResNet', depth=18, out_indices=(3,), method='recu', pool_last=True, avg_down=False,
                  init_cfg=[dict(type='Kaiming', layer='Conv2d', mode='fan_in'),
                            dict(type='Constant', val=1e-8, layer='BatchNorm2d')]),
    head=dict(num_classes=_base_.num_classes, norm=True))
max_epochs = 200
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.2, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=max_epochs, eta_min=0, convert_to_iter_based=True),
]
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
train_dataloader = dict(batch_size=512)
auto_scale_lr = dict(base_batch_size=512)
