"""The fused model: traced (``graph``), matched (``patterns``), written (``program``), run as a forward (``region``)."""

from .fuse import fuse_, fused_parts, fused_steps, unfuse_
from .report import FusionReport

__all__ = ['FusionReport', 'fuse_', 'fused_parts', 'fused_steps', 'unfuse_']
