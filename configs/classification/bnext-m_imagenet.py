# BNext-M (arXiv 2211.12933). Published: 78.3.
_base_ = './bnext-t_imagenet.py'
model = dict(backbone=dict(size='M'))
