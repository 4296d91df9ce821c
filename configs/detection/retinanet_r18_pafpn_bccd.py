# The float twin of retinanet_bnn-r18_pafpn_bccd.py.
_base_ = './retinanet_r18_fpn_bccd.py'
model = dict(neck=dict(type='PAFPN'))
