# BinaryViT (arXiv 2306.16678): one stage from scratch, taught by DeiT-S alone. Published: 67.7, and 70.6 with merge='real'.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/adam_linear_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNViT', method='binaryvit'),
    head=dict(num_classes=_base_.num_classes),
    distill=dict(
        teacher=dict(model=dict(type='timm', model_name='deit_small_patch16_224', pretrained=True)),
        losses=[dict(type='bnn_plugins.DistributionLoss')]))
max_epochs = 300
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=max_epochs, eta_min=1e-5, convert_to_iter_based=True)
]
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.0))
train_dataloader = dict(batch_size=512)
