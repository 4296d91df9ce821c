"""What every task of mmengine uses: runs, packed files, summaries, benchmarks, the converter. mmdet itself is imported when a
Runner is built."""

from .converter import binarized
from .pack import pack_checkpoint

__all__ = ['binarized', 'pack_checkpoint']
