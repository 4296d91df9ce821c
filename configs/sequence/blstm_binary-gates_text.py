# All gates in {0, 1}; they are soft in the first half of the training.
_base_ = './blstm_text.py'
model = dict(rnn=dict(gates='binary', soft_until=0.5))
