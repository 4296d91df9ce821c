# Binary weights alone.
_base_ = './blstm_text.py'
model = dict(rnn=dict(weight_only=True))
