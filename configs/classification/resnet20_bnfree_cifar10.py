# A network without norms (arXiv 2104.08215): fixed scales in the residual branches, adaptive gradient clipping.
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/adam_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=20, method='bnfree',
                  norm_cfg=dict(type='bnn_plugins.ResidualScale')),
    head=dict(num_classes=_base_.num_classes))
custom_hooks = [
    dict(type='bnn_plugins.BinaryTrainingHook'), dict(type='bnn_plugins.EpochSeedHook'),
    dict(type='bnn_plugins.AdaptiveGradientClippingHook')
]
