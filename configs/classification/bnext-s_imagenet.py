# BNext-S (arXiv 2211.12933). Published: 76.1.
_base_ = './bnext-t_imagenet.py'
model = dict(backbone=dict(size='S'))
