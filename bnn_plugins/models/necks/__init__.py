from .bnn_fpn import BNNFPN
from .bnn_lstm import BNNBiLSTMNeck, BNNConvLSTMNeck

__all__ = ['BNNFPN', 'BNNBiLSTMNeck', 'BNNConvLSTMNeck']
