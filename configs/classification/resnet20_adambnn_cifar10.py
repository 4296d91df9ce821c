# AdamBNN (arXiv 2106.11309): two steps, a little decay in the first, none in the second.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/adam_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=20, method=dict(type='adambnn')),
    head=dict(num_classes=_base_.num_classes))
steps = [
    dict(model=dict(backbone=dict(method=dict(binarize_weights=False))),
         optim_wrapper=dict(optimizer=dict(weight_decay=5e-6), paramwise_cfg=dict(latent_decay_mult=1.0))),
    dict(),
]
