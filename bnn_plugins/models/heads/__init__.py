"""Heads of detectors. Needs mmdet."""

from .bidet import BiDetRetinaHead, BiDetRoIHead, BiDetSSDHead
from .rpn import BNNRPNHead

__all__ = ['BNNRPNHead', 'BiDetRetinaHead', 'BiDetRoIHead', 'BiDetSSDHead']
