# BiT's elastic binarizers (arXiv 2205.13016) in the pyramid of BinaryViT.
_base_ = './bnnvit_binaryvit_cifar10.py'
model = dict(backbone=dict(method='bit'))
