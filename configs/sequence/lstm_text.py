# The float twin: torch's LSTM.
_base_ = [
    '../_base_/datasets/text.py', '../_base_/schedules/adam_cosine_text.py', '../_base_/sequence_runtime.py'
]
model = dict(
    type='bnn_plugins.BinaryLanguageModel',
    vocabulary=_base_.vocabulary,
    rnn=dict(type='bnn_plugins.LSTM', hidden_size=512))
