# Binary weights, inputs and hidden states; soft gates, real output.
_base_ = './lstm_text.py'
model = dict(rnn=dict(type='bnn_plugins.BinaryLSTM', method='reactnet'))
optim_wrapper = dict(paramwise_cfg=dict(latent_lr_mult=2.0))  # a short training needs flips early
