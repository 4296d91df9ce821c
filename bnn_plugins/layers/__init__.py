"""Binary layers as ``nn.Module``s. Needs torch only."""

from ..binarize import RSign
from .activations import RPReLU, build_act
from .base import BinaryLayer
from .conv import BinaryConv2d
from .linear import BinaryLinear

__all__ = ['BinaryConv2d', 'BinaryLayer', 'BinaryLinear', 'RPReLU', 'RSign', 'build_act']
