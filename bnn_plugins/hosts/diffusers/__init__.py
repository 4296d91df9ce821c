"""The diffusers door: the quantization backend, and what rebuilds binary models. Needs diffusers."""

from .loading import export_loader_shim, from_config
from .quantizer import BNNQuantizer

__all__ = ['BNNQuantizer', 'export_loader_shim', 'from_config']
