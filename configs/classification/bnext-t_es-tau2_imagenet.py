# Expanding-and-shrinking (arXiv 2503.23709), tau=2. Published: 75.2.
_base_ = './bnext-t_imagenet.py'
model = dict(backbone=dict(expand=dict(tau=2)))
