"""What a call must look like and the shape of what it returns: one function per operator, with the arguments of a backend.

The fake kernels and the real ones start here, so eager, compiled and exported code raise the same sentences; backends need not
look again. Numbers are checked where their geometry is made. Sizes may be symbolic. TypeError: a wrong dtype. ValueError:
everything else.
"""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from .attention import RULES, Planes
from .epilogue import ACTS, Epilogue
from .geometry import STEPS_LIMIT, Conv2dGeometry, Int8Conv2dGeometry, Pool2dGeometry, Stem2dGeometry, check_terms
from .layout import words_per_group
from .recurrence import CANDIDATES, FEEDBACKS, GATES, READOUTS, Recurrence

STREAMS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*STREAMS, torch.float64)
BYTES = (torch.uint8, torch.int8)
MOST_MAPS = 8  # side by side
Shape = tuple[int, ...]


def pack_activations(x: Tensor, threshold: Tensor | None, groups: int) -> Shape:
    """`x` [N, C, H, W] -> [N, H, W, groups * words]."""
    if x.dim() != 4:
        raise ValueError(f'pack_activations takes x [N, C, H, W], got {list(x.shape)}: use pack_features for [..., C].')
    batch, channels, height, width = x.shape
    _check_floats(x, threshold, channels)
    return batch, height, width, groups * words_per_group(channels, groups)


def pack_features(x: Tensor, threshold: Tensor | None) -> Shape:
    """`x` [..., C] -> [..., words]."""
    if x.dim() < 1:
        raise ValueError('pack_features takes x [..., C], got a tensor without dimensions: give it a feature dimension.')
    *lead, channels = x.shape
    _check_floats(x, threshold, channels)
    return *lead, words_per_group(channels)


def binary_conv2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, O, H', W']."""
    if geometry.transposed:
        raise ValueError('the geometry is that of a transposed convolution: use binary_conv_transpose2d.')
    return _check_conv(x_words, w_words, geometry)


def binary_conv2d_sign(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor, flip: Tensor | None,
                       out_groups: int) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, H', W', out_groups * words]."""
    batch, outputs, *sizes = binary_conv2d(x_words, w_words, geometry)
    _check_replicas('threshold', threshold, outputs)
    _check_vector('threshold', threshold, threshold.numel(), torch.int32, x_words)
    _check_vector('flip', flip, threshold.numel(), torch.bool, x_words)
    return batch, *sizes, out_groups * words_per_group(threshold.numel(), out_groups)


def binary_block2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, shortcut: Tensor | None,
                   dtype: torch.dtype, pack: bool, keep: bool, out: Tensor | None = None) -> tuple[Shape, Shape]:
    """[N, H, W, groups * words], [O, kH, kW, words] -> words [N, H', W', out_groups * words] and stream [N, P, H', W'].

    The shape of a result that is not asked for is [0]; `out` takes the stream.
    """
    batch, outputs, *sizes = binary_conv2d(x_words, w_words, geometry)
    words = _check_epilogue(epilogue, outputs, dtype, x_words, 'x_words')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, the stream or both.')
    stream = (batch, epilogue.width, *sizes)
    _check_shortcut(shortcut, stream, x_words, 'x_words')
    if out is not None:
        if (out.dtype, tuple(out.shape), keep) != (dtype, stream, True):
            raise ValueError(f'out takes the stream, {dtype} {list(stream)} with keep=True, got {out.dtype} {list(out.shape)} '
                             f'with keep={keep}.')
        if not out.is_contiguous(memory_format=torch.channels_last):
            raise ValueError('out must be in channels-last memory.')
        _check_device(x_words, out, 'out')
    return (batch, *sizes, words) if pack else (0,), stream if keep else (0,)


def binary_block2d_(stream: Tensor, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue,
                    pack: bool) -> Shape:
    """As `binary_block2d` with the stream as shortcut and result -> words, [0] where they are not asked for."""
    words, _ = binary_block2d(x_words, w_words, geometry, epilogue, stream, stream.dtype, pack, True)
    if not stream.is_contiguous(memory_format=torch.channels_last):
        raise ValueError('binary_block2d_ works in place on a stream in channels-last memory: convert it with '
                         'x.contiguous(memory_format=torch.channels_last), or use binary_block2d.')
    return words


def downsample2d(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Shape:
    """[N, C, H, W], [O, C], [O] -> [N, O, ceil(H / pool), ceil(W / pool)]."""
    if x.dim() != 4:
        raise ValueError(f'downsample2d takes x [N, C, H, W], got {list(x.shape)}.')
    if x.dtype not in STREAMS:
        raise TypeError(f'x must be float32, float16 or bfloat16, got {x.dtype}: convert it with x.float().')
    if not 1 <= pool < STEPS_LIMIT:
        raise ValueError(f'pool must be at least 1 and below 2**31, got {pool}.')
    _check_dense('x', x)
    batch, channels, height, width = x.shape
    if channels < 1 or height < 1 or width < 1:
        raise ValueError(f'downsample2d takes at least one channel and one pixel, got x {list(x.shape)}.')
    if weight.dim() != 2 or weight.shape[1] != channels or weight.dtype != torch.float32:
        raise ValueError(f'weight must be float32 [O, {channels}], got {weight.dtype} {list(weight.shape)}: flatten the 1x1 '
                         f'convolution and fold its norm into it.')
    _check_dense('weight', weight)
    _check_device(x, weight, 'weight', 'x')
    _check_vector('bias', bias, weight.shape[0], torch.float32, x, 'x')
    return batch, weight.shape[0], -(-height // pool), -(-width // pool)


def pool2d(x: Tensor, geometry: Pool2dGeometry, shortcut: Tensor | None) -> Shape:
    """`x` [N, fold * C, H, W] -> [N, C, H', W']."""
    if x.dim() != 4 or min(x.shape) < 1 or x.shape[1] % geometry.fold:
        raise ValueError(f'pool2d takes x [N, C, H, W], C a multiple of {geometry.fold}, got {list(x.shape)}.')
    if x.dtype not in STREAMS:
        raise TypeError(f'x must be float32, float16 or bfloat16, got {x.dtype}: convert it with x.float().')
    _check_known('kind', geometry.kind, ('max', 'mean', 'nearest'))
    if geometry.kind == 'max' and geometry.fold > 1:
        raise ValueError('pool2d folds channels by their mean, not by their largest.')
    if any(2 * p > k for p, k in zip(geometry.padding, geometry.window, strict=True)):
        raise ValueError(f'padding must be at most half of the window {list(geometry.window)}, got {list(geometry.padding)}.')
    _check_dense('x', x)
    shape = geometry.shape(x.shape, None if shortcut is None else shortcut.shape)
    _check_output(shape[2:], x.shape[2:], geometry.window)
    if shortcut is not None and shortcut.dtype != x.dtype:
        raise TypeError(f'shortcut must be {x.dtype} as x, got {shortcut.dtype}.')
    _check_shortcut(shortcut, shape, x, 'x')
    return shape


def concat2d(threshold: Tensor | None, groups: int, pack: bool, keep: bool, x: Tensor,
             **others: Tensor) -> tuple[Shape, Shape]:
    """`x`, `x1`, `x2`, ... [N, C_i, H, W] -> words [N, H, W, groups * words] and stream [N, sum of C_i, H, W].

    The shape of a result that is not asked for is [0].
    """
    if len(others) >= MOST_MAPS:
        raise ValueError(f'concat2d takes {MOST_MAPS} maps at most, got {1 + len(others)}.')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, the stream or both.')
    for name, other in dict(x=x, **others).items():
        if other.dim() != 4 or (other.shape[0], *other.shape[2:]) != (x.shape[0], *x.shape[2:]) or min(other.shape) < 1:
            raise ValueError(f'concat2d takes maps [N, C, H, W] that differ in C alone, got x {list(x.shape)} and {name} '
                             f'{list(other.shape)}.')
        _check_map(name, other, x)
    batch, _, height, width = x.shape
    channels = x.shape[1] + sum(other.shape[1] for other in others.values())
    words = groups * words_per_group(channels, groups)
    _check_vector('threshold', threshold, channels, torch.float32, x, 'x')
    return (batch, height, width, words) if pack else (0,), (batch, channels, height, width) if keep else (0,)


def _check_map(name: str, other: Tensor, x: Tensor) -> None:
    if other.dtype not in STREAMS or other.dtype != x.dtype:
        raise TypeError(f'maps must all be float32, float16 or bfloat16, got x {x.dtype} and {name} {other.dtype}.')
    _check_dense(name, other)
    _check_device(x, other, name, 'x')


def weighted_sum2d(epilogue: Epilogue, spread: tuple[int, ...], weight: Tensor | None, dtype: torch.dtype, pack: bool,
                   keep: bool, x: Tensor, gate: Tensor | None = None, **others: Tensor) -> tuple[Shape, Shape]:
    """`x`, `gate`, `x1`, `x2`, ... [N, C, H, W], smaller by their `spread` -> words [N, H, W, out_groups * words] and stream.

    The shape of a result that is not asked for is [0].
    """
    maps = dict(x=x, **others)
    if len(maps) > MOST_MAPS:
        raise ValueError(f'weighted_sum2d takes {MOST_MAPS} maps at most, got {len(maps)}.')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, the stream or both.')
    if len(spread) != len(maps) + 1 or spread[0] != 1 or not all(1 <= size < STEPS_LIMIT for size in spread):
        raise ValueError(f'spread must be 1 for x, and a size from 1 on for each other map and the gate, got {spread}.')
    if x.dim() != 4 or min(x.shape) < 1:
        raise ValueError(f'weighted_sum2d takes maps [N, C, H, W], got x {list(x.shape)}.')
    batch, channels, *sizes = x.shape
    for (name, other), size in zip((*maps.items(), ('gate', gate)), spread, strict=True):
        if other is None:
            continue
        expected = [batch, channels, *(-(-side // size) for side in sizes)]
        if list(other.shape) != expected:
            raise ValueError(f'{name} must be {expected} to be spread {size}-fold over x {list(x.shape)}, got '
                             f'{list(other.shape)}.')
        _check_map(name, other, x)
    _check_tensor('weight', weight, torch.float32, [len(maps), channels], 'one row per map', x, 'x')
    words = _check_epilogue(epilogue, channels, dtype, x, 'x')
    if epilogue.width != channels:
        raise ValueError(f'scale must have one element per channel, [{channels}], got [{epilogue.width}].')
    return (batch, *sizes, words) if pack else (0,), tuple(x.shape) if keep else (0,)


def folded_block2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, shortcut: Tensor | None,
                   dtype: torch.dtype, pack: bool, keep: bool, fold: int) -> tuple[Shape, Shape]:
    """As `binary_block2d` with a stream [N, P / fold, H', W']; the channels of `shortcut` may divide P."""
    if not 1 <= fold < STEPS_LIMIT or fold & (fold - 1) or epilogue.width % fold:
        raise ValueError(f'fold must be a power of two that divides the {epilogue.width} channels, got {fold}.')
    repeated = None
    if shortcut is not None:
        if shortcut.dim() != 4 or shortcut.shape[1] < 1 or epilogue.width % shortcut.shape[1]:
            raise ValueError(f'shortcut must be [N, C, H, W] with C that divides the {epilogue.width} channels, got '
                             f'{list(shortcut.shape)}.')
        repeated = shortcut[:, :1].expand(-1, epilogue.width, -1, -1)
    words, stream = binary_block2d(x_words, w_words, geometry, epilogue, repeated, dtype, pack, keep)
    return words, (stream[0], stream[1] // fold, *stream[2:]) if keep else stream


def to_planes(x: Tensor) -> Shape:
    """[N, C, H, W] -> the same."""
    if x.dim() != 4 or x.dtype not in STREAMS:
        raise ValueError(f'to_planes takes float32, float16 or bfloat16 [N, C, H, W], got {x.dtype} {list(x.shape)}.')
    _check_dense('x', x)
    return tuple(x.shape)


def stem2d(x: Tensor, weight: Tensor, geometry: Stem2dGeometry, epilogue: Epilogue, dtype: torch.dtype,
           pack: bool) -> tuple[Shape, Shape]:
    """[N, C, H, W], [O, C, kH, kW] -> words [N, H', W', out_groups * words] and stream [N, P, H', W'].

    The shape of words that are not asked for is [0].
    """
    if x.dim() != 4:
        raise ValueError(f'stem2d takes x [N, C, H, W], got {list(x.shape)}.')
    if x.dtype not in STREAMS:
        raise TypeError(f'x must be float32, float16 or bfloat16, got {x.dtype}: convert it with x.float().')
    _check_dense('x', x)
    batch, channels, *image = x.shape
    if channels < 1 or image[0] < 1 or image[1] < 1:
        raise ValueError(f'stem2d takes at least one channel and one pixel, got x {list(x.shape)}.')
    if channels != geometry.channels:
        raise ValueError(f'weight must be [O, {channels}, kH, kW], got {list(weight.shape)}.')
    shape = [geometry.outputs, channels, *geometry.kernel]
    _check_tensor('weight', weight, torch.float32, shape, 'one kernel per output and input channel', x, 'x')
    sizes, pooled = geometry.sizes(image)
    _check_output(sizes, image, geometry.kernel)
    _check_output(pooled, sizes, geometry.window)
    words = _check_epilogue(epilogue, geometry.outputs, dtype, x, 'x')
    return (batch, *pooled, words) if pack else (0,), (batch, epilogue.width, *pooled)


def binary_conv_transpose2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, O, H', W']."""
    if not geometry.transposed:
        raise ValueError('the geometry of a transposed convolution has an output_padding: give one, or use binary_conv2d.')
    shape = _check_conv(x_words, w_words, geometry)
    if min(x_words.shape[1:3]) < 1:
        raise ValueError(f'a transposed convolution takes at least one pixel, got an image of {x_words.shape[1]} x '
                         f'{x_words.shape[2]}.')
    return shape


def binary_linear(x_words: Tensor, w_words: Tensor, features: int) -> Shape:
    """[..., words], [O, words] -> [..., O]."""
    if x_words.dim() < 1 or w_words.dim() != 2:
        raise ValueError(f'binary_linear takes x_words [..., words] and w_words [O, words], got {list(x_words.shape)} and '
                         f'{list(w_words.shape)}: pack with pack_features and pack_weight.')
    _check_words('x_words', x_words, words_per_group(features), features, 1, 'pack_features')
    _check_words('w_words', w_words, words_per_group(features), features, 1, 'pack_weight')
    _check_device(x_words, w_words, 'w_words')
    if w_words.shape[0] < 1:
        raise ValueError('w_words must have at least one output channel, got none.')
    check_terms(features)
    return *x_words.shape[:-1], w_words.shape[0]


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Shape:
    """`x` [...] -> [...] of the dtype of `zero_point`."""
    if x.dtype not in STREAMS:
        raise TypeError(f'x must be float32, float16 or bfloat16, got {x.dtype}: convert it with x.float().')
    _check_dense('x', x)
    _check_quantization('scale', scale, 'zero_point', zero_point, x)
    return tuple(x.shape)


def int8_conv2d(x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, epilogue: Epilogue,
                shortcut: Tensor | None, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype, pack: bool,
                keep: bool) -> tuple[Shape, Shape]:
    """`x` [N, C, H, W], `weight` [O, C / groups, kH, kW] -> words [N, H', W', out_groups * words] and stream [N, P, H', W'].

    The shape of a result that is not asked for is [0].
    """
    if x.dim() != 4:
        raise ValueError(f'x must be [N, C, H, W], got {list(x.shape)}: int8_linear takes rows.')
    if x.dtype not in BYTES:
        raise TypeError(f'x must be uint8 or int8, got {x.dtype}: make it with quantize.')
    _check_dense('x', x)
    batch, channels, *image = x.shape
    if channels != geometry.channels:
        raise ValueError(f'x has {channels} channels, but the weight takes {geometry.channels} in {geometry.groups} group(s).')
    if x_zero.numel() not in (1, channels) or x_zero.dim() != 1:
        raise ValueError(f'x_zero must have one element or one per channel, [{channels}], got {list(x_zero.shape)}.')
    _check_tensor('x_zero', x_zero, x.dtype, x_zero.shape, '', x, 'x')
    _check_tensor('weight', weight, torch.int8, geometry.w_shape, 'one kernel per output channel', x, 'x')
    size = geometry.size(image)
    _check_output(size, image, geometry.kernel)
    words = _check_epilogue(epilogue, geometry.outputs, torch.float32 if dtype in BYTES else dtype, x, 'x')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, the stream or both.')
    stream = (batch, epilogue.width, *size)
    _check_shortcut(shortcut, stream, x, 'x')
    if (dtype in BYTES) != (out_scale is not None) or (out_scale is None) != (out_zero is None):
        raise ValueError(f'a stream of uint8 or int8 needs out_scale and out_zero, another has none of them; got {dtype}.')
    if out_scale is not None and out_zero is not None:
        _check_quantization('out_scale', out_scale, 'out_zero', out_zero, x)
        if out_zero.dtype != dtype:
            raise TypeError(f'out_zero must be {dtype} as the stream, got {out_zero.dtype}.')
    return (batch, *size, words) if pack else (0,), stream if keep else (0,)


def int8_pooled2d(x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, window: Pool2dGeometry,
                  epilogue: Epilogue, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype,
                  pack: bool) -> tuple[Shape, Shape]:
    """`int8_conv2d` with `window` over its sums -> words [N, H', W', words] and stream [N, P, H', W'].

    The shape of words that are not asked for is [0].
    """
    words, stream = int8_conv2d(x, x_zero, weight, geometry, epilogue, None, out_scale, out_zero, dtype, pack, True)
    if pack and (epilogue.out_groups != 1 or epilogue.width != geometry.outputs):
        raise ValueError('the words of pooled sums have one group, and no replicas.')
    if window.kind != 'max' or window.size is not None or window.fold != 1:
        raise ValueError('sums are pooled by their largest.')
    shape = window.shape(stream)
    _check_output(shape[2:], stream[2:], window.window)
    return (shape[0], *shape[2:], words[-1]) if pack else (0,), shape


def pack_normalized(x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None) -> Shape:
    """`x` [..., C] with `mean` and `std` [...] -> [..., words]."""
    if x.dim() < 1:
        raise ValueError('pack_normalized takes x [..., C], got a tensor without dimensions: give it a feature dimension.')
    if x.dtype not in STREAMS:
        raise TypeError(f'x must be float32, float16 or bfloat16, got {x.dtype}: convert it with x.float().')
    _check_dense('x', x)
    *lead, channels = x.shape
    for name, tensor in dict(mean=mean, std=std).items():
        _check_tensor(name, tensor, torch.float32, lead, 'one element per row of x', x, 'x')
    _check_tensor('threshold', threshold, torch.float32, [channels], 'one element per channel', x, 'x')
    _check_tensor('flip', flip, torch.bool, [channels], 'one element per channel', x, 'x')
    return *lead, words_per_group(channels)


def binary_lstm(x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor, lengths: Tensor | None,
                pack: bool, keep: bool) -> tuple[Shape, Shape, Shape, Shape]:
    """`x` [T, N, D, 4 I], `w_words` [D, 4 O, words] -> h [T, N, D, P], words [T, N, D, words], h_words [D, N, words] and
    cell [D, N, P]. The shape of a result that is not asked for is [0]."""
    scale, scale_x, bias, threshold, eps, gates, candidate, readout, feedback = recurrence
    if x.dim() != 4 or w_words.dim() != 3:
        raise ValueError(f'binary_lstm takes x [T, N, D, 4 * units] and w_words [D, 4 * O, words], got {list(x.shape)} and '
                         f'{list(w_words.shape)}: split the directions, for example with x.unflatten(-1, (D, -1)).')
    if x.dtype not in (torch.float32, torch.int32):
        raise TypeError(f'x must be float32 or the int32 sums of binary_linear, got {x.dtype}: convert it with x.float().')
    _check_known('gates', gates, GATES)
    _check_known('candidate', candidate, CANDIDATES)
    _check_known('readout', readout, READOUTS)
    _check_known('feedback', feedback, FEEDBACKS)
    if feedback == 'and' and gates != 'binary':
        raise ValueError(f"feedback='and' needs a binary output gate, got gates={gates!r}: use feedback='h'.")
    if cell.dtype == torch.int8 and (gates, candidate) != ('binary', 'sign'):
        raise ValueError(f"an int8 cell counts: it needs gates='binary' and candidate='sign', got {gates!r} and "
                         f'{candidate!r}: give a float32 cell.')
    steps, batch, directions, _ = x.shape
    if scale.dim() != 2 or scale.shape[1] < 4 or scale.shape[1] % 4:
        raise ValueError(f'scale must be [D, 4 * P], one element per gate and unit, got {list(scale.shape)}.')
    units, outputs = scale.shape[1] // 4, w_words.shape[1] // 4
    if outputs < 1 or w_words.shape[1] % 4 or units % outputs:
        raise ValueError(f'w_words has {w_words.shape[1]} rows, but {units} units take 4 * {units} of them, or 4 * O where O '
                         f'divides {units} (replicas): stack the gates i, f, g, o.')
    if x.shape[3] not in (4 * units, 4 * outputs):
        raise ValueError(f'x must be [T, N, D, {4 * units}] or [T, N, D, {4 * outputs}], four gates of all units or of all '
                         f'accumulators, got {list(x.shape)}.')
    _check_dense('x', x)
    words = words_per_group(units)
    _check_tensor('w_words', w_words, torch.int32, [directions, 4 * outputs, words], 'packed along the units', x, 'x')
    for name, tensor in dict(scale=scale, scale_x=scale_x, bias=bias).items():
        _check_tensor(name, tensor, torch.float32, [directions, 4 * units], 'one element per gate and unit', x, 'x')
    _check_tensor('threshold', threshold, torch.float32, [directions, units], 'one element per unit', x, 'x')
    _check_tensor('h_words', h_words, torch.int32, [directions, batch, words], 'packed along the units', x, 'x')
    _check_tensor('cell', cell, torch.int8 if cell.dtype == torch.int8 else torch.float32, [directions, batch, units],
                  'one element per unit', x, 'x')
    _check_tensor('lengths', lengths, torch.int64, [batch], 'one length per sequence', x, 'x')
    if eps is not None and not 0 <= eps < float('inf'):
        raise ValueError(f'eps must be at least 0 and finite, got {eps}; None leaves the sums as they are.')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, h or both.')
    check_terms(units)
    return ((steps, batch, directions, units) if keep else (0,), (steps, batch, directions, words) if pack else (0,),
            (directions, batch, words), (directions, batch, units))


def binary_attention(q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                     mask_words: Tensor | None) -> Shape:
    """[B, N, heads, words], [B, M, heads, words], [B, heads, V, words of M] -> [B, N, heads, V]."""
    rules, limit, table, scale = planes
    for name, words in dict(q_words=q_words, k_words=k_words, v_words=v_words).items():
        if words.dim() != 4:
            raise ValueError(f'{name} must have four dimensions, got {list(words.shape)}: pack queries and keys with '
                             f'pack_heads, values with pack_values.')
    batch, queries, heads, _ = q_words.shape
    keys, values = k_words.shape[1], v_words.shape[2]
    if heads < 1 or keys < 1 or values < 1:
        raise ValueError(f'binary_attention takes at least one head, key and value, got {heads}, {keys} and {values}.')
    words = words_per_group(head_dim)
    first = q_words, 'q_words'
    _check_tensor('q_words', q_words, torch.int32, [batch, queries, heads, words], f'{head_dim} signs per head', *first)
    _check_tensor('k_words', k_words, torch.int32, [batch, keys, heads, words], f'{head_dim} signs per head', *first)
    key_words = words_per_group(keys)
    _check_tensor('v_words', v_words, torch.int32, [batch, heads, values, key_words], 'packed along the keys', *first)
    for rule in rules:
        _check_known('rule', rule, RULES)
    if limit.dim() != 2 or limit.shape[0] < 1:
        raise ValueError(f'limit must be [planes, {heads}], got {list(limit.shape)}: use limit.view(1, -1) for one plane.')
    count = limit.shape[0]
    if len(rules) != count:
        raise ValueError(f'limit has {count} planes and there are {len(rules)} rules: give one rule, or one for each plane.')
    _check_tensor('limit', limit, torch.float64, [count, heads], 'one element per plane and head', *first)
    if (table is None) == ('elastic' in rules):
        raise ValueError(f"table belongs to the rule 'elastic', which needs one from attention_table; got "
                         f"{', '.join(rules)} {'without' if table is None else 'with'} a table.")
    if table is not None:
        rows = 1 if table.dim() == 2 and table.shape[0] == 1 else heads
        _check_tensor('table', table, torch.int32, [rows, head_dim + 1], 'as attention_table makes it', *first)
    if scale is None and count > 1:
        raise ValueError(f'{count} planes of attention are added with their scales: give scale [{count}, {heads}].')
    _check_tensor('scale', scale, torch.float32, [count, heads], 'one element per plane and head', *first)
    if mask_words is not None:
        shape = [1 if mask_words.dim() == 3 and mask_words.shape[i] == 1 else size for i, size in enumerate((batch, queries))]
        _check_tensor('mask_words', mask_words, torch.int32, [*shape, key_words],
                      'one bit per key, as pack_mask makes them', *first)
    check_terms(head_dim)
    check_terms(keys)
    return batch, queries, heads, values


def _check_conv(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Shape:
    if x_words.dim() != 4:
        raise ValueError(f'x_words must be [N, H, W, groups * words], got {list(x_words.shape)}: pack with pack_activations.')
    channels, groups = geometry.channels, geometry.groups
    _check_words('x_words', x_words, geometry.pixel_words, channels, groups, 'pack_activations')
    _check_words('w_words', w_words, geometry.words, channels, groups, 'pack_weight')
    if tuple(w_words.shape) != geometry.w_shape:
        raise ValueError(f'w_words must be {list(geometry.w_shape)}, got {list(w_words.shape)}: pack with pack_weight.')
    _check_device(x_words, w_words, 'w_words')
    shape = geometry.shape(x_words.shape)
    _check_output(shape[2:], x_words.shape[1:3], geometry.kernel)
    return shape


def _check_epilogue(epilogue: Epilogue, outputs: int, dtype: torch.dtype, first: Tensor, first_name: str) -> int:
    """Returns the words of a pixel."""
    _check_replicas('scale', epilogue.scale, outputs)
    _check_known('act', epilogue.act, ACTS)
    gamma, slope, zeta = epilogue.gamma, epilogue.slope, epilogue.zeta
    if epilogue.act == 'prelu' and slope is None:
        raise ValueError("act='prelu' needs slope: give one per output channel.")
    if epilogue.act != 'prelu' and not gamma is slope is zeta is None:
        raise ValueError(f"gamma, slope and zeta belong to act='prelu', got act={epilogue.act!r}: leave them None.")
    for name, vector in epilogue.vectors().items():
        _check_vector(name, vector, epilogue.width, torch.float32, first, first_name)
    if dtype not in STREAMS:
        raise TypeError(f'dtype of the stream must be float32, float16 or bfloat16, got {dtype}.')
    return epilogue.out_groups * words_per_group(epilogue.width, epilogue.out_groups)


def _check_shortcut(shortcut: Tensor | None, stream: Shape, first: Tensor, first_name: str) -> None:
    if shortcut is None:
        return
    if shortcut.dtype not in STREAMS:
        raise TypeError(f'shortcut must be float32, float16 or bfloat16, got {shortcut.dtype}: convert it with x.float().')
    if tuple(shortcut.shape) != stream:
        raise ValueError(f'shortcut must have the shape of the output, {list(stream)}, got {list(shortcut.shape)}.')
    _check_dense('shortcut', shortcut)
    _check_device(first, shortcut, 'shortcut', first_name)


def _check_quantization(scale_name: str, scale: Tensor, zero_name: str, zero: Tensor, x: Tensor) -> None:
    _check_tensor(scale_name, scale, torch.float32, [1], 'one for the tensor', x, 'x')
    if zero.dtype not in BYTES:
        raise TypeError(f'{zero_name} must be uint8 or int8, got {zero.dtype}: it says what is made.')
    _check_tensor(zero_name, zero, zero.dtype, [1], 'one for the tensor', x, 'x')


def _check_replicas(name: str, vector: Tensor, outputs: int) -> None:
    if vector.dim() != 1 or vector.numel() < 1 or vector.numel() % outputs:
        raise ValueError(f'{name} must have one element per output channel, [{outputs}] or a multiple of it for replicas, got '
                         f'{list(vector.shape)}.')


def _check_vector(name: str, vector: Tensor | None, size: int, dtype: torch.dtype, first: Tensor,
                  first_name: str = 'x_words') -> None:
    if vector is None:
        return
    if vector.dtype != dtype:
        raise TypeError(f'{name} must be {dtype}, got {vector.dtype}: convert it with {name}.to({dtype}).')
    if list(vector.shape) != [size]:
        raise ValueError(f'{name} must be [{size}], one element per output channel, got {list(vector.shape)}.')
    _check_dense(name, vector)
    _check_device(first, vector, name, first_name)


def _check_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        nearest = get_close_matches(value, known, n=1, cutoff=0)[0]
        raise ValueError(f'Unknown {name} {value!r}: did you mean {nearest!r}? Known are {", ".join(known)}.')


def _check_tensor(name: str, tensor: Tensor | None, dtype: torch.dtype, shape: Sequence[int], meaning: str, first: Tensor,
                  first_name: str) -> None:
    """Dtype, layout, shape (which `meaning` explains) and device of an argument that may be absent."""
    if tensor is None:
        return
    if tensor.dtype != dtype:
        raise TypeError(f'{name} must be {dtype}, got {tensor.dtype}: convert it with {name}.to({dtype}), or pack it where it '
                        f'holds signs.')
    _check_dense(name, tensor)
    if list(tensor.shape) != list(shape):
        raise ValueError(f'{name} must be {list(shape)}, {meaning}, got {list(tensor.shape)}.')
    _check_device(first, tensor, name, first_name)


def _check_floats(x: Tensor, threshold: Tensor | None, channels: int) -> None:
    if x.dtype not in FLOATS:
        raise TypeError(f'x must be float32, float16, bfloat16 or float64, got {x.dtype}: convert it with x.float().')
    _check_dense('x', x)
    if threshold is None:
        return
    if threshold.dtype not in FLOATS:
        raise TypeError(f'threshold must be floating point, got {threshold.dtype}: convert it with threshold.float().')
    if threshold.numel() != 1 and list(threshold.shape) != [channels]:
        raise ValueError(f'threshold must have one element or one per channel, [{channels}], got {list(threshold.shape)}: '
                         f'flatten it, or select the channels.')
    _check_dense('threshold', threshold)
    _check_device(x, threshold, 'threshold', 'x')


def _check_words(name: str, words: Tensor, expected: int, channels: int, groups: int, packer: str) -> None:
    if words.dtype != torch.int32:
        raise TypeError(f'{name} must be int32 words, got {words.dtype}: pack it with {packer}.')
    _check_dense(name, words)
    if words.shape[-1] != expected:
        raise ValueError(f'{name} has {words.shape[-1]} words in its last dimension, but {channels} channels in {groups} '
                         f'group(s) take {expected}: pack it with {packer} and the same groups.')


def _check_dense(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise ValueError(f'{name} must be a dense tensor, got the layout {x.layout}: convert it with {name}.to_dense().')


def _check_device(first: Tensor, second: Tensor, second_name: str, first_name: str = 'x_words') -> None:
    if first.device != second.device:
        raise ValueError(f'{first_name} is on {first.device} and {second_name} on {second.device}: move both to one device.')


def _check_output(sizes: Sequence[int], image: Sequence[int], kernel: Sequence[int]) -> None:
    if any(size < 1 for size in sizes):
        raise ValueError(f'the output would be empty ({sizes[0]} x {sizes[1]}) for an image of {image[0]} x {image[1]} and a '
                         f'kernel of {kernel[0]} x {kernel[1]}: enlarge the image, or change padding, dilation or kernel.')
