"""1-bit operators for torch: signs packed into int32 words, exact integer results.

layout.py has the bits, ops.py the operators, dispatch.py the backends, README.md the arithmetic.
"""

from .attention import attention_table
from .dispatch import (
    Backend,
    OpIO,
    available_backends,
    explain,
    join,
    last_backend,
    register_backend,
    selection,
    set_backend,
)
from .epilogue import Epilogue
from .int8_ops import Quantization, int8_conv2d, int8_conv_transpose2d, int8_linear, quantize
from .layout import LAYOUT_VERSION, WORD_BITS, pack_bits, pack_weight, transpose_weight, unpack_weight
from .map_ops import Pool2dGeometry, concat2d, pool2d, to_planes, weighted_sum2d
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
    stem2d,
)
from .prepared_op import PreparedOp, input_signature
from .recurrence import Recurrence
from .sequence_ops import binary_attention, binary_lstm, pack_heads, pack_mask, pack_normalized, pack_values
from .warmup import warmup

__all__ = [
    'LAYOUT_VERSION',
    'WORD_BITS',
    'Backend',
    'Epilogue',
    'OpIO',
    'Pool2dGeometry',
    'PreparedOp',
    'Quantization',
    'Recurrence',
    'attention_table',
    'available_backends',
    'binary_attention',
    'binary_block2d',
    'binary_block2d_',
    'binary_conv2d',
    'binary_conv2d_sign',
    'binary_conv_transpose2d',
    'binary_linear',
    'binary_lstm',
    'concat2d',
    'downsample2d',
    'explain',
    'input_signature',
    'int8_conv2d',
    'int8_conv_transpose2d',
    'int8_linear',
    'join',
    'last_backend',
    'pack_activations',
    'pack_bits',
    'pack_features',
    'pack_heads',
    'pack_mask',
    'pack_normalized',
    'pack_values',
    'pack_weight',
    'pool2d',
    'quantize',
    'register_backend',
    'selection',
    'set_backend',
    'stem2d',
    'to_planes',
    'transpose_weight',
    'unpack_weight',
    'warmup',
    'weighted_sum2d',
]
