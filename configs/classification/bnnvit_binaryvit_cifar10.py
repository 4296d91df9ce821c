# BinaryViT's block (arXiv 2306.16678) in a small pyramid for 32x32 pixels: patches of 4, maps of 8x8, 4x4 and 2x2 tokens,
# widths 32, 64 and 128. The step of the probabilities starts at twice the share of one of 16 keys (0.005 is for 49 and more).
_base_ = [
    '../_base_/datasets/cifar10.py', '../_base_/schedules/adam_cosine_cifar.py', '../_base_/classification_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryClassifier',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='bnn_plugins.BNNViT', method='binaryvit', probability=dict(type='elastic', initial=0.125), image_size=32,
        base_channels=32, depths=(1, 2, 2), heads=(1, 2, 4), ratios=(4, 4, 4), pools=(2, 1, 1), windows=(0, 0, 0),
        out_indices=(2,)),
    head=dict(num_classes=_base_.num_classes))
