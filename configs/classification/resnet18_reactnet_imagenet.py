# ReActNet (arXiv 2003.03488): two steps, taught by ResNet-34. Published: 65.9.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/two_step_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNResNet', depth=18, out_indices=(3,), method=dict(type='reactnet'), stem_act=False,
                  pool_last=True),
    head=dict(num_classes=_base_.num_classes),
    distill=dict(
        teacher=dict(model=dict(type='timm', model_name='resnet34', pretrained=True)),
        losses=[dict(type='bnn_plugins.DistributionLoss')]))
train_dataloader = dict(batch_size=512)
