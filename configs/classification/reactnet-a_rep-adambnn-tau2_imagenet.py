# RepTran (arXiv 2207.09049), tau=2. Published: 71.34.
_base_ = './reactnet-a_adambnn_imagenet.py'
model = dict(backbone=dict(expand=dict(tau=2, style='rep')))
