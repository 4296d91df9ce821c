"""Heads of detectors. Needs mmdet."""

from .bidet import BiDetRetinaHead, BiDetRoIHead, BiDetSSDHead

__all__ = ['BiDetRetinaHead', 'BiDetRoIHead', 'BiDetSSDHead']
