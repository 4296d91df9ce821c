# Binary weights alone. Real states are smaller than signs, so the weights of the norms start higher.
_base_ = './blstm_text.py'
model = dict(rnn=dict(weight_only=True, norm_init=3.0))
optim_wrapper = dict(paramwise_cfg=dict(latent_lr_mult=1.0))
