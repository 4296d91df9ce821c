"""The mmdet door: the converter and packed files. Needs mmengine; mmdet itself is imported when a Runner is built."""

from .converter import binarized
from .pack import pack_checkpoint

__all__ = ['binarized', 'pack_checkpoint']
