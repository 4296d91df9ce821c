"""Binary layers as ``nn.Module``s. Needs torch only."""

from ..binarize import RSign
from .activations import RPReLU, build_act
from .adaptive import AdaptiveConv2d
from .base import BinaryLayer, Packable
from .conv import BinaryConv2d
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
from .linear import BinaryLinear

__all__ = ['AdaptiveConv2d', 'BinaryConv2d', 'BinaryLayer', 'BinaryLinear', 'ExpandedConv2d', 'Expansion', 'FirstCopy',
           'Packable', 'RPReLU', 'RSign', 'SqueezeExcite', 'Tile', 'build_act', 'expanded_width', 'spread_copies_', 'tile']
