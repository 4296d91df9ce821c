# Bi-Real Net (arXiv 1808.00278). Published: 62.2.
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/adam_linear_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNResNet', depth=34, out_indices=(3,), method='bireal', pool_last=True),
    head=dict(num_classes=_base_.num_classes, loss=dict(type='bnn_plugins.CrossEntropy', label_smoothing=0.1)))
train_dataloader = dict(batch_size=512)
