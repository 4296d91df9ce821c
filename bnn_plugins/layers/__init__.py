"""Binary layers as ``nn.Module``s. Needs torch only."""

from ..binarize import RSign
from .activations import RPReLU, build_act
from .adaptive import AdaptiveConv2d
from .attention import BinaryAttention
from .base import BinaryLayer
from .cells import RecurrentCell
from .conv import BinaryConv1d, BinaryConv2d, BinaryConv3d, BinaryConvTranspose2d
from .conv_lstm import BinaryConvLSTM, BinaryConvLSTMCell
from .expand import (
    ExpandedConv2d,
    Expansion,
    FirstCopy,
    SqueezeExcite,
    Tile,
    expanded_width,
    spread_copies_,
    tile,
)
from .gated_linear import GatedLinearCell
from .gates import GateConv2d, GateLinear
from .linear import BinaryLinear
from .lstm import BinaryLSTM, BinaryLSTMCell
from .scan2d import BinaryScan2d
from .tokens import LayerScale
from .transformer import BinaryFeedForward, BinarySelfAttention, BinaryTransformerBlock

__all__ = ['AdaptiveConv2d', 'BinaryAttention', 'BinaryConv1d', 'BinaryConv2d', 'BinaryConv3d',
           'BinaryConvLSTM', 'BinaryConvLSTMCell', 'BinaryConvTranspose2d', 'BinaryFeedForward',
           'BinaryLSTM', 'BinaryLSTMCell', 'BinaryLayer', 'BinaryLinear', 'BinaryScan2d', 'BinarySelfAttention',
           'BinaryTransformerBlock', 'ExpandedConv2d', 'Expansion', 'FirstCopy', 'GateConv2d', 'GateLinear',
           'GatedLinearCell', 'LayerScale', 'RPReLU', 'RSign', 'RecurrentCell', 'SqueezeExcite', 'Tile',
           'build_act', 'expanded_width', 'spread_copies_', 'tile']
