"""1-bit operators for torch: signs packed into int32 words, exact integer results.

layout.py has the bits, ops.py the operators, dispatch.py the backends, README.md the arithmetic.
"""

from .bound import Bound
from .dispatch import available_backends, last_backend, selection, set_backend
from .epilogue import Epilogue
from .layout import LAYOUT_VERSION, WORD_BITS, pack_weight, transpose_weight, unpack_weight
from .ops import (
    binary_block2d,
    binary_block2d_,
    binary_conv2d,
    binary_conv2d_sign,
    binary_conv_transpose2d,
    binary_linear,
    downsample2d,
    pack_activations,
    pack_features,
)
from .warmup import warmup

__all__ = [
    'LAYOUT_VERSION',
    'WORD_BITS',
    'Bound',
    'Epilogue',
    'available_backends',
    'binary_block2d',
    'binary_block2d_',
    'binary_conv2d',
    'binary_conv2d_sign',
    'binary_conv_transpose2d',
    'binary_linear',
    'downsample2d',
    'last_backend',
    'pack_activations',
    'pack_features',
    'pack_weight',
    'selection',
    'set_backend',
    'transpose_weight',
    'unpack_weight',
    'warmup',
]
