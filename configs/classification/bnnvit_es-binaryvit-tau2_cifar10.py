# Expanding-and-shrinking (arXiv 2503.23709) of the feed-forward networks, tau=2.
_base_ = './bnnvit_binaryvit_cifar10.py'
model = dict(backbone=dict(expand=dict(tau=2)))
