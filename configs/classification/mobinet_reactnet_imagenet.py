# Binary depthwise-separable convolutions, after MoBiNet (arXiv 1907.12629).
_base_ = [
    '../_base_/datasets/imagenet.py', '../_base_/schedules/adam_linear_imagenet.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(type='bnn_plugins.BNNMoBiNet', k=4, method='reactnet'),
    head=dict(num_classes=_base_.num_classes, loss=dict(type='bnn_plugins.CrossEntropy', label_smoothing=0.1)))
