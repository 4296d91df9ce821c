"""The calls of the engine for real layers in int8, as those of lowering.py."""

from array import array
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from ..derived import Derived
from ..geometry import Int8Conv2dGeometry
from . import engine
from .calls import BLOCK2D, POOLED2D, QUANTIZE
from .engine import DTYPES, STREAMS, fields
from .lowering import AMX, AVX512, conv_struct, fused_fields, image, is_image, lowered, rows, vectors, weight

WORD = 4  # bytes of a word of the engine
TILE = 64, 16  # terms and channels of an AMX tile
COPIED = 32  # bytes: positions that begin fewer apart get a copy each
GROUP = 16  # channels and outputs of a group that is made of several; with AMX the terms of a tile
LEAST_USED = 0.2  # of the products of its tiles: below, AVX-512 is faster


def lower_quantize(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, kind = call['x'], call['zero_point'].dtype
    places, held = vectors(fixed, inputs, 'scale', 'zero_point')
    if places is None or 'x' not in inputs or not (is_image(x) if x.dim() == 4 else x.is_contiguous()):
        return None
    record = fields('Quantizing', count=x.numel(), dtype=DTYPES[x.dtype], out_dtype=STREAMS[kind], x='x', y='y',
                    scale=places['scale'], zero=places['zero_point'])
    made = dict(y=(image if x.dim() == 4 else rows)(checks.quantize(**call), kind))
    return lowered(cpu, 'quantize', QUANTIZE, ['isa', 'threads', *record], fixed, inputs, made, ['y'], holds=held)


def lower_int8_conv2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, shortcut, dtype = (call[name] for name in ('x', 'shortcut', 'dtype'))
    fused, held = fused_fields(fixed, inputs, dtype, shortcut, 'stream' if call['keep'] else 0)
    if fused is None or 'x' not in inputs or not (is_image(x) and is_image(shortcut)) or fixed.get('shortcut') is not None:
        return None
    words, stream = checks.int8_conv2d(**call)
    made = dict(words=rows(words), stream=(image if call['keep'] else rows)(stream, dtype))
    return lowered(cpu, 'int8_conv2d', BLOCK2D, ['geometry', 'x', 'kernels', *fused], fixed, inputs, made, ['words', 'stream'],
                   holds=held, **convolution(fixed, inputs))


def lower_int8_pooled2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, window, dtype = (call[name] for name in ('x', 'window', 'dtype'))
    fused, held = fused_fields(fixed, inputs, dtype, None, 'stream')
    if fused is None or 'x' not in inputs or not is_image(x):
        return None
    words, stream = checks.int8_pooled2d(**call)
    pairs = dict(kernel=window.window, stride=window.stride, pad=window.padding, out=stream[2:])
    windows = fields('Windows', **{f'{name}_{axis}': side for name, both in pairs.items()
                                   for axis, side in zip('hw', both, strict=True)})
    return lowered(cpu, 'int8_pooled2d', POOLED2D, ['geometry', 'x', 'kernels', *fused, *windows], fixed, inputs,
                   dict(words=rows(words), stream=image(stream, dtype)), ['words', 'stream'], holds=held,
                   **convolution(fixed, inputs))


def convolution(fixed: dict, inputs: dict) -> dict:
    """What an int8 convolution derives: 'geometry' and 'kernels'."""
    x, geometry = (fixed | inputs)['x'], (fixed | inputs)['geometry']
    batch, _, *size = x.shape

    def derive(kernels: Tensor, zero: Tensor, isa: int, threads: int) -> tuple:
        conv, groups = seen(geometry, batch, tuple(size), isa, threads, x.dtype)
        # Tiles of AMX have an order of their own where taps follow each other, and in a transposed convolution.
        order = (geometry.stride, geometry.padding) if geometry.transposed else ()
        known = conv[0], groups, geometry.groups, geometry.dilation, order
        prepared = prepared_weights([kernels, zero], known, kernels, zero, conv, geometry.groups, groups)
        return conv.buffer_info()[0], prepared.data_ptr(), (conv, prepared)

    return dict(derived=('geometry', 'kernels'), derive=derive,
                weights=[weight(fixed, inputs, 'weight'), weight(fixed, inputs, 'x_zero')])


def seen(geometry: Int8Conv2dGeometry, batch: int, size: tuple[int, int], isa: int, threads: int,
         dtype: torch.dtype) -> tuple[array, int]:
    """A convolution as the engine sees it, and in how many groups."""
    if isa == AMX:
        whole = joined(geometry, TILE[0])
        conv = conv_struct(whole, batch, size, isa, threads, dtype)
        if conv[0] == AMX and used(whole) >= LEAST_USED:
            return conv, whole.groups
        isa = AVX512
    whole = joined(geometry, GROUP)
    return conv_struct(whole, batch, size, isa, threads, dtype), whole.groups


def joined(geometry: Int8Conv2dGeometry, most: int) -> Int8Conv2dGeometry:
    """The same sums by larger groups, of at most so many channels, with weights of 0 between the groups that each is made of:
    one instruction multiplies four channels of a group and makes 16 of its sums, whether there are as many or not."""
    most = max(1, most // max(geometry.group_channels, geometry.group_outputs))
    count = max(count for count in range(1, most + 1) if geometry.groups % count == 0)
    return geometry._replace(groups=geometry.groups // count)


def used(geometry: Int8Conv2dGeometry) -> float:
    """Share of the products of AMX tiles that belong to the convolution: as amx_layout.hpp lays them out."""
    depth, width = TILE
    (rows, columns), channels = geometry.kernel, geometry.group_channels
    terms = rows * columns * -(-channels // depth) * depth
    if geometry.groups == 1 and geometry.dilation[1] == 1 and not geometry.transposed:
        row = columns * channels
        terms = min(terms, rows * -(-row // depth) * depth)
        if geometry.stride[1] * channels < COPIED:
            terms = min(terms, -(-((rows - 1) * row + -(-row // COPIED) * COPIED) // depth) * depth)
    outputs = geometry.group_outputs
    return rows * columns * channels / terms * outputs / (-(-outputs // width) * width)


def prepare(kernels: Tensor, zero: Tensor, conv: array, groups: int, joined: int) -> Tensor:
    if joined < groups:
        parts = kernels.unflatten(0, (joined, groups // joined, -1))
        kernels = parts.new_zeros(*parts.shape[:3], parts.shape[1], *parts.shape[3:])
        for part in range(parts.shape[1]):
            kernels[:, part, :, part] = parts[:, part]
        kernels, groups = kernels.flatten(3, 4).flatten(0, 2), joined
    library, at, channels = engine.library(), conv.buffer_info()[0], kernels.shape[1]
    filled = F.pad(kernels.movedim(1, -1), (0, -channels % WORD)).contiguous()
    unsigned = (zero.to(torch.int32) + (128 if zero.dtype == torch.int8 else 0)).to(torch.uint8)
    zeros = F.pad(unsigned.expand(groups * channels).unflatten(0, (groups, channels)), (0, -channels % WORD)).contiguous()
    made = torch.zeros(library.bnn_prepared_bytes(at), dtype=torch.uint8)
    library.bnn_prepare(at, filled.data_ptr(), zeros.data_ptr(), made.data_ptr())
    return made


prepared_weights = Derived(prepare)
LOWERINGS: dict[str, Callable[..., Callable | None]] = {
    'quantize': lower_quantize, 'int8_conv2d': lower_int8_conv2d, 'int8_pooled2d': lower_int8_pooled2d}
