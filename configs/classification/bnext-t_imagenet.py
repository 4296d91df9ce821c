# BNext-T (arXiv 2211.12933), taught by EfficientNet-B2 alone, without its assistant. Published: 72.4.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/adam_linear_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNBNext', size='T', method='bnext'),
    head=dict(num_classes=_base_.num_classes),
    distill=dict(
        teacher=dict(model=dict(type='timm', model_name='efficientnet_b2', pretrained=True)),
        losses=[dict(type='bnn_plugins.DistributionLoss')]))
max_epochs = 512
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, end=max_epochs, eta_min=1e-7, convert_to_iter_based=True),
]
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-3), paramwise_cfg=dict(latent_decay_mult=1e-5),
    clip_grad=dict(max_norm=5.0))
train_dataloader = dict(batch_size=512)
