"""What a call must look like and the shape of what it returns: one function per operator, with the operator's own arguments.

The fake kernels, the real ones and the reference all start here, so eager, compiled and exported code raise the same
sentences. Sizes may be symbolic. TypeError: a wrong dtype. ValueError: everything else.
"""

from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import Tensor

from .attention import RULES
from .epilogue import ACTS
from .layout import words_per_group
from .recurrence import CANDIDATES, FEEDBACKS, GATES, READOUTS

STREAMS = (torch.float32, torch.float16, torch.bfloat16)
FLOATS = (*STREAMS, torch.float64)
TERMS_LIMIT = 2**24  # float32 holds every integer up to here: the +-1 convolution of the latent model is exact below it
STEPS_LIMIT = 2**31  # of strides, paddings, dilations and pools: positions then fit into 64 bits
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


def binary_conv2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                  dilation: Sequence[int], groups: int, pad_value: int) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, O, H', W']."""
    check_pad_value(pad_value)
    outputs = _check_conv(x_words, w_words, channels, stride, padding, dilation, groups)
    batch, *image, _ = x_words.shape
    kernel = w_words.shape[1:3]
    sizes = output_sizes(image, kernel, stride, padding, dilation)
    _check_output(sizes, image, kernel)
    return batch, outputs, *sizes


def binary_conv2d_sign(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                       dilation: Sequence[int], groups: int, pad_value: int, threshold: Tensor, flip: Tensor | None,
                       out_groups: int) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, H', W', out_groups * words]."""
    batch, outputs, *sizes = binary_conv2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value)
    _check_replicas('threshold', threshold, outputs)
    _check_vector('threshold', threshold, threshold.numel(), torch.int32, x_words)
    _check_vector('flip', flip, threshold.numel(), torch.bool, x_words)
    return batch, *sizes, out_groups * words_per_group(threshold.numel(), out_groups)


def binary_block2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                   dilation: Sequence[int], groups: int, pad_value: int, scale: Tensor, bias: Tensor, shortcut: Tensor | None,
                   act: str, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None,
                   out_groups: int, dtype: torch.dtype, pack: bool, keep: bool,
                   out: Tensor | None = None) -> tuple[Shape, Shape]:
    """[N, H, W, groups * words], [O, kH, kW, words] -> words [N, H', W', out_groups * words] and stream [N, P, H', W'].

    The shape of a result that is not asked for is [0]; `out` takes the stream.
    """
    batch, outputs, *sizes = binary_conv2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value)
    _check_replicas('scale', scale, outputs)
    width = scale.numel()
    _check_act(act, gamma, slope, zeta)
    for name, vector in dict(scale=scale, bias=bias, gamma=gamma, slope=slope, zeta=zeta, threshold=threshold).items():
        _check_vector(name, vector, width, torch.float32, x_words)
    if dtype not in STREAMS:
        raise TypeError(f'dtype of the stream must be float32, float16 or bfloat16, got {dtype}.')
    if not (pack or keep):
        raise ValueError('pack=False and keep=False leave nothing to return: ask for the words, the stream or both.')
    stream = (batch, width, *sizes)
    if shortcut is not None:
        if shortcut.dtype not in STREAMS:
            raise TypeError(f'shortcut must be float32, float16 or bfloat16, got {shortcut.dtype}: convert it with x.float().')
        if tuple(shortcut.shape) != stream:
            raise ValueError(f'shortcut must have the shape of the output, {list(stream)}, got {list(shortcut.shape)}.')
        _check_dense('shortcut', shortcut)
        _check_device(x_words, shortcut, 'shortcut')
    if out is not None:
        if (out.dtype, tuple(out.shape), keep) != (dtype, stream, True):
            raise ValueError(f'out takes the stream, {dtype} {list(stream)} with keep=True, got {out.dtype} {list(out.shape)} '
                             f'with keep={keep}.')
        if not out.is_contiguous(memory_format=torch.channels_last):
            raise ValueError('out must be in channels-last memory.')
        _check_device(x_words, out, 'out')
    words = out_groups * words_per_group(width, out_groups)
    return (batch, *sizes, words) if pack else (0,), stream if keep else (0,)


def binary_block2d_(stream: Tensor, x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int],
                    padding: Sequence[int], dilation: Sequence[int], groups: int, pad_value: int, scale: Tensor, bias: Tensor,
                    act: str, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None,
                    out_groups: int, pack: bool) -> Shape:
    """As `binary_block2d` with the stream as shortcut and result -> words, [0] where they are not asked for."""
    words, _ = binary_block2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value, scale, bias, stream,
                              act, gamma, slope, zeta, threshold, out_groups, stream.dtype, pack, True)
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


def stem2d(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], window: Sequence[int],
           window_stride: Sequence[int], window_padding: Sequence[int], scale: Tensor, bias: Tensor, act: str,
           gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None, out_groups: int,
           dtype: torch.dtype, pack: bool) -> tuple[Shape, Shape]:
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
    if weight.dim() != 4 or weight.shape[1] != channels or any(size < 1 for size in weight.shape):
        raise ValueError(f'weight must be [O, {channels}, kH, kW] and hold something, got {list(weight.shape)}.')
    if weight.dtype != torch.float32:
        raise TypeError(f'weight must be torch.float32, got {weight.dtype}: convert it with weight.float().')
    _check_dense('weight', weight)
    _check_device(x, weight, 'weight', 'x')
    _check_pair('stride', stride, 1)
    _check_pair('padding', padding, 0)
    _check_pair('window', window, 1)
    _check_pair('window_stride', window_stride, 1)
    _check_pair('window_padding', window_padding, 0)
    if any(2 * p > k for p, k in zip(window_padding, window, strict=True)):
        raise ValueError(f'window_padding must be at most half of the window {list(window)}, got {list(window_padding)}.')
    outputs, _, *kernel = weight.shape
    sizes = output_sizes(image, kernel, stride, padding)
    _check_output(sizes, image, kernel)
    pooled = output_sizes(sizes, window, window_stride, window_padding)
    _check_output(pooled, sizes, window)
    _check_replicas('scale', scale, outputs)
    width = scale.numel()
    _check_act(act, gamma, slope, zeta)
    for name, vector in dict(scale=scale, bias=bias, gamma=gamma, slope=slope, zeta=zeta, threshold=threshold).items():
        _check_vector(name, vector, width, torch.float32, x, 'x')
    if dtype not in STREAMS:
        raise TypeError(f'dtype of the stream must be float32, float16 or bfloat16, got {dtype}.')
    words = out_groups * words_per_group(width, out_groups)
    return (batch, *pooled, words) if pack else (0,), (batch, width, *pooled)


def binary_conv_transpose2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                            output_padding: Sequence[int], dilation: Sequence[int], groups: int) -> Shape:
    """[N, H, W, groups * words], [O, kH, kW, words] -> [N, O, H', W']."""
    outputs = _check_conv(x_words, w_words, channels, stride, padding, dilation, groups)
    _check_pair('output_padding', output_padding, 0)
    if any(o >= s and o >= d for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(f'output_padding={list(output_padding)} must be smaller than stride={list(stride)} or '
                         f'dilation={list(dilation)}: choose a smaller one.')
    batch, *image, _ = x_words.shape
    if image[0] < 1 or image[1] < 1:
        raise ValueError(f'a transposed convolution takes at least one pixel, got an image of {image[0]} x {image[1]}.')
    kernel = w_words.shape[1:3]
    sizes = [(i - 1) * s - 2 * p + d * (k - 1) + o + 1
             for i, k, s, p, o, d in zip(image, kernel, stride, padding, output_padding, dilation, strict=True)]
    _check_output(sizes, image, kernel)
    return batch, outputs, *sizes


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
    _check_terms(features)
    return *x_words.shape[:-1], w_words.shape[0]


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


def binary_lstm(x: Tensor, w_words: Tensor, scale: Tensor, scale_x: Tensor | None, bias: Tensor | None,
                threshold: Tensor | None, eps: float | None, gates: str, candidate: str, readout: str, feedback: str,
                h_words: Tensor, cell: Tensor, lengths: Tensor | None, pack: bool,
                keep: bool) -> tuple[Shape, Shape, Shape, Shape]:
    """`x` [T, N, D, 4 I], `w_words` [D, 4 O, words] -> h [T, N, D, P], words [T, N, D, words], h_words [D, N, words] and
    cell [D, N, P]. The shape of a result that is not asked for is [0]."""
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
    _check_terms(units)
    return ((steps, batch, directions, units) if keep else (0,), (steps, batch, directions, words) if pack else (0,),
            (directions, batch, words), (directions, batch, units))


def binary_attention(q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, rules: Sequence[str],
                     limit: Tensor, table: Tensor | None, scale: Tensor | None, mask_words: Tensor | None) -> Shape:
    """[B, N, heads, words], [B, M, heads, words], [B, heads, V, words of M] -> [B, N, heads, V]."""
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
    planes = limit.shape[0]
    if len(rules) != planes:
        raise ValueError(f'limit has {planes} planes and there are {len(rules)} rules: give one rule, or one for each plane.')
    _check_tensor('limit', limit, torch.float64, [planes, heads], 'one element per plane and head', *first)
    if (table is None) == ('elastic' in rules):
        raise ValueError(f"table belongs to the rule 'elastic', which needs one from attention_table; got "
                         f"{', '.join(rules)} {'without' if table is None else 'with'} a table.")
    if table is not None:
        rows = 1 if table.dim() == 2 and table.shape[0] == 1 else heads
        _check_tensor('table', table, torch.int32, [rows, head_dim + 1], 'as attention_table makes it', *first)
    if scale is None and planes > 1:
        raise ValueError(f'{planes} planes of attention are added with their scales: give scale [{planes}, {heads}].')
    _check_tensor('scale', scale, torch.float32, [planes, heads], 'one element per plane and head', *first)
    if mask_words is not None:
        shape = [1 if mask_words.dim() == 3 and mask_words.shape[i] == 1 else size for i, size in enumerate((batch, queries))]
        _check_tensor('mask_words', mask_words, torch.int32, [*shape, key_words],
                      'one bit per key, as pack_mask makes them', *first)
    _check_terms(head_dim)
    _check_terms(keys)
    return batch, queries, heads, values


def output_sizes(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                 dilation: Sequence[int] = (1, 1)) -> list[int]:
    """Positions of a window along each axis; less than 1 where none fits."""
    return [(i + 2 * p - d * (k - 1) - 1) // s + 1
            for i, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True)]


def check_pad_value(pad_value: int) -> int:
    if pad_value not in (0, -1, 1):
        raise ValueError(f'pad_value must be 0, -1 or 1, got {pad_value}: 0 leaves out-of-image taps out of the sum.')
    return int(pad_value)


def _check_conv(x_words, w_words, channels, stride, padding, dilation, groups) -> int:
    """Checks what both convolutions share and returns the number of output channels."""
    if x_words.dim() != 4 or w_words.dim() != 4:
        raise ValueError(f'x_words must be [N, H, W, groups * words] and w_words [O, kH, kW, words], got '
                         f'{list(x_words.shape)} and {list(w_words.shape)}: pack with pack_activations and pack_weight.')
    words = words_per_group(channels, groups)
    _check_words('x_words', x_words, groups * words, channels, groups, 'pack_activations')
    _check_words('w_words', w_words, words, channels, groups, 'pack_weight')
    _check_device(x_words, w_words, 'w_words')
    _check_pair('stride', stride, 1)
    _check_pair('padding', padding, 0)
    _check_pair('dilation', dilation, 1)
    outputs, height, width, _ = w_words.shape
    if outputs < 1 or height < 1 or width < 1:
        raise ValueError(f'w_words must have at least one output channel and one tap, got {list(w_words.shape)}.')
    if outputs % groups:
        raise ValueError(f'groups={groups} does not divide the {outputs} output channels of w_words: '
                         f'choose a group count that does.')
    _check_terms(height * width * (channels // groups))
    return outputs


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


def _check_act(act: str, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None) -> None:
    _check_known('act', act, ACTS)
    if act == 'prelu' and slope is None:
        raise ValueError("act='prelu' needs slope: give one per output channel.")
    if act != 'prelu' and not gamma is slope is zeta is None:
        raise ValueError(f"gamma, slope and zeta belong to act='prelu', got act={act!r}: leave them None.")


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


def _check_pair(name: str, pair: Sequence[int], least: int) -> None:
    if len(pair) != 2 or any(value < least or value >= STEPS_LIMIT for value in pair):
        raise ValueError(f'{name} must be an int or a pair of ints, each at least {least} and below 2**31, got {list(pair)}.')


def _check_terms(terms: int) -> None:
    if terms >= TERMS_LIMIT:
        raise ValueError(f'one output sums {terms} terms, the limit is 2**24 - 1: split the channels and add the results.')


def _check_output(sizes: Sequence[int], image: Sequence[int], kernel: Sequence[int]) -> None:
    if any(size < 1 for size in sizes):
        raise ValueError(f'the output would be empty ({sizes[0]} x {sizes[1]}) for an image of {image[0]} x {image[1]} and a '
                         f'kernel of {kernel[0]} x {kernel[1]}: enlarge the image, or change padding, dilation or kernel.')
