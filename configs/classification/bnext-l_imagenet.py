# BNext-L (arXiv 2211.12933). Published: 80.6.
_base_ = './bnext-t_imagenet.py'
model = dict(backbone=dict(size='L'))
