# Each pyramid level remembers the frames before it.
_base_ = './retinanet_bnn-r18_fpn_bccd-clips.py'
model = dict(
    _delete_=True,
    type='bnn_plugins.ClipDetector',
    detector=dict(
        _base_.model,
        neck=[
            dict(
                type='bnn_plugins.BNNFPN',
                method=_base_.method,
                in_channels=[32, 64, 128, 256],
                out_channels=64,
                start_level=1,
                add_extra_convs='on_input',
                num_outs=4,
                norm_cfg=_base_.norm_cfg),
            dict(type='bnn_plugins.BNNConvLSTMNeck', in_channels=64, num_levels=4, lstm=dict(method=_base_.method)),
        ]))
