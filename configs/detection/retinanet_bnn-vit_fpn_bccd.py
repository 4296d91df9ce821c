# RetinaNet on a small BNNViT (arXiv 2306.16678): maps of 60x80 to 8x10 tokens, all with 8x10 keys (average share 1 / 80).
_base_ = './retinanet_r18_fpn_bccd.py'
method = 'binaryvit'
model = dict(
    backbone=dict(
        _delete_=True, type='bnn_plugins.BNNViT', method=method, probability=dict(type='elastic', initial=0.025),
        base_channels=32, depths=(1, 1, 2, 1), heads=(1, 2, 4, 8), ratios=(4, 4, 4, 4), pools=(8, 4, 2, 1), image_size=256,
        out_indices=(0, 1, 2, 3)),
    neck=dict(type='bnn_plugins.BNNFPN', method=method, in_channels=[32, 64, 128, 256]))
