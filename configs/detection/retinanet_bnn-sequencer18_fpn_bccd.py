# The deeper stages scan rows and columns.
_base_ = './retinanet_bnn-r18_fpn_bccd.py'
model = dict(backbone=dict(type='bnn_plugins.BNNSequencer', depth=18))
