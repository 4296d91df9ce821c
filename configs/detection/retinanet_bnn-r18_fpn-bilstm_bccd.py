# Rows and columns of each pyramid level mixed by binary LSTMs.
_base_ = './retinanet_bnn-r18_fpn_bccd.py'
model = dict(neck=[
    dict(
        type='bnn_plugins.BNNFPN',
        method=_base_.method,
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        start_level=1,
        add_extra_convs='on_input',
        num_outs=4,
        norm_cfg=_base_.norm_cfg),
    dict(type='bnn_plugins.BNNBiLSTMNeck', in_channels=64, num_levels=4, lstm=dict(method=_base_.method)),
])
