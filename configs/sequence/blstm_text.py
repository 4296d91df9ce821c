# Binary weights, inputs and hidden states; soft gates, real output.
_base_ = './lstm_text.py'
model = dict(rnn=dict(type='bnn_plugins.BinaryLSTM', method='reactnet'))
