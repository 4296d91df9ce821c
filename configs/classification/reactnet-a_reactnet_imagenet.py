# ReActNet-A (arXiv 2003.03488): two steps, taught by ResNet-34. Published: 69.4.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/two_step_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNReActNet', method=dict(type='reactnet')),
    head=dict(num_classes=_base_.num_classes),
    distill=dict(
        teacher=dict(model=dict(type='timm', model_name='resnet34', pretrained=True)),
        losses=[dict(type='bnn_plugins.DistributionLoss')]))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
auto_scale_lr = dict(base_batch_size=256)
