"""Every operator in plain torch, exact and obvious: what other backends are compared with, and what runs where they cannot.

Words are unpacked to -1 and +1 in float32 and multiplied as matrices: sums of fewer than 2**24 such terms are exact in any
order. Not with `F.conv2d`, for which a convolution library may choose Winograd or FFT, and these round.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import checks, sequence_reference
from .dispatch import Backend
from .epilogue import replicate, stream_of, words_of
from .layout import pack_bits, unpack_signs, unpack_weight


def pack_activations(x: Tensor, threshold: Tensor | None = None, groups: int = 1) -> Tensor:
    """Float `[N, C, H, W]` to int32 `[N, H, W, groups * words]`; see `bnn_kernels.pack_activations`."""
    checks.pack_activations(x, threshold, groups)
    return pack_bits(_at_least(x.permute(0, 2, 3, 1), threshold), groups)


def pack_features(x: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Float `[..., C]` to int32 `[..., words]`; see `bnn_kernels.pack_features`."""
    checks.pack_features(x, threshold)
    return pack_bits(_at_least(x, threshold))


def binary_conv2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int] = (1, 1),
                  padding: Sequence[int] = (0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
                  pad_value: int = 0) -> Tensor:
    """Int32 `[N, O, H', W']`; see `bnn_kernels.binary_conv2d`. Pairs are (height, width)."""
    shape = checks.binary_conv2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value)
    vertical, horizontal = padding
    x = unpack_signs(x_words, channels, groups).permute(0, 3, 1, 2)
    x = F.pad(x, (horizontal, horizontal, vertical, vertical), value=float(pad_value))  # a 0 is neither sign: it adds nothing
    columns = F.unfold(x, w_words.shape[1:3], dilation, 0, stride)  # [N, C * kH * kW, H' * W']
    weight = unpack_weight(w_words, channels // groups).reshape(groups, shape[1] // groups, -1)
    return _channels_last(_matmul(weight, columns.unflatten(1, (groups, -1))).reshape(shape).to(torch.int32))


def binary_conv2d_sign(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                       dilation: Sequence[int], groups: int, pad_value: int, threshold: Tensor, flip: Tensor | None,
                       out_groups: int) -> Tensor:
    """Int32 `[N, H', W', out_groups * words]`; see `bnn_kernels.binary_conv2d_sign`."""
    acc = binary_conv2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value)
    bits = replicate(acc, threshold.numel()).permute(0, 2, 3, 1) >= threshold
    return pack_bits(bits if flip is None else bits != flip, out_groups)


def binary_block2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                   dilation: Sequence[int], groups: int, pad_value: int, scale: Tensor, bias: Tensor, shortcut: Tensor | None,
                   act: str, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None,
                   out_groups: int, dtype: torch.dtype, pack: bool, keep: bool, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Words `[N, H', W', out_groups * words]` and stream `[N, P, H', W']`; see `bnn_kernels.binary_block2d`."""
    acc = binary_conv2d(x_words, w_words, channels, stride, padding, dilation, groups, pad_value)
    stream = stream_of(acc, scale, bias, shortcut, act, gamma, slope, zeta, dtype)
    words = words_of(stream, threshold, out_groups) if pack else x_words.new_empty(0)
    if out is not None:
        return words, out.copy_(stream)
    return words, _channels_last(stream) if keep else stream.new_empty(0)


def downsample2d(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """`[N, O, H', W']` of the dtype of `x`; see `bnn_kernels.downsample2d`."""
    pooled = F.avg_pool2d(x.float(), pool, pool, ceil_mode=True, count_include_pad=False)
    return _channels_last((_matmul(weight, pooled.flatten(2)) + bias[:, None]).unflatten(2, pooled.shape[2:]).to(x.dtype))


def stem2d(x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], window: Sequence[int],
           window_stride: Sequence[int], window_padding: Sequence[int], scale: Tensor, bias: Tensor, act: str,
           gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None, out_groups: int,
           dtype: torch.dtype, pack: bool) -> tuple[Tensor, Tensor]:
    """Words `[N, H', W', out_groups * words]` and stream `[N, P, H', W']`; see `bnn_kernels.stem2d`."""
    with torch.autocast(x.device.type, enabled=False):
        sums = F.max_pool2d(F.conv2d(x.float(), weight, None, stride, padding), window, window_stride, window_padding)
    stream = stream_of(sums, scale, bias, None, act, gamma, slope, zeta, dtype)
    return words_of(stream, threshold, out_groups) if pack else stream.new_empty(0, dtype=torch.int32), _channels_last(stream)


def binary_conv_transpose2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int] = (1, 1),
                            padding: Sequence[int] = (0, 0), output_padding: Sequence[int] = (0, 0),
                            dilation: Sequence[int] = (1, 1), groups: int = 1) -> Tensor:
    """Int32 `[N, O, H', W']`; see `bnn_kernels.binary_conv_transpose2d`. Pairs are (height, width)."""
    shape = checks.binary_conv_transpose2d(x_words, w_words, channels, stride, padding, output_padding, dilation, groups)
    image, kernel = x_words.shape[1:3], w_words.shape[1:3]
    x = unpack_signs(x_words, channels, groups).permute(0, 3, 1, 2).flatten(2).unflatten(1, (groups, -1))
    weight = unpack_signs(w_words, channels // groups).reshape(groups, -1, channels // groups)  # rows are (O / groups, kH, kW)
    columns = _matmul(weight, x).flatten(1, 2)  # [N, O * kH * kW, HW]
    whole = [(i - 1) * s + d * (k - 1) + 1 for i, k, s, d in zip(image, kernel, stride, dilation, strict=True)]
    y = F.fold(columns, whole, kernel, dilation, 0, stride)
    (top, left), (bottom, right) = padding, [p - o for p, o in zip(padding, output_padding, strict=True)]
    return _channels_last(F.pad(y, (-left, -right, -top, -bottom)).reshape(shape).to(torch.int32))  # negative widths crop


def binary_linear(x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
    """Int32 `[..., O]`; see `bnn_kernels.binary_linear`."""
    checks.binary_linear(x_words, w_words, features)
    return _matmul(unpack_signs(x_words, features), unpack_signs(w_words, features).t()).to(torch.int32)


class Reference(Backend):
    """Runs every operator on every device."""

    name = 'reference'
    pack_activations = staticmethod(pack_activations)
    pack_features = staticmethod(pack_features)
    binary_conv2d = staticmethod(binary_conv2d)
    binary_conv2d_sign = staticmethod(binary_conv2d_sign)
    binary_block2d = staticmethod(binary_block2d)
    downsample2d = staticmethod(downsample2d)
    stem2d = staticmethod(stem2d)
    binary_conv_transpose2d = staticmethod(binary_conv_transpose2d)
    binary_linear = staticmethod(binary_linear)
    pack_normalized = staticmethod(sequence_reference.pack_normalized)
    binary_lstm = staticmethod(sequence_reference.binary_lstm)
    binary_attention = staticmethod(sequence_reference.binary_attention)


def _at_least(x: Tensor, threshold: Tensor | None) -> Tensor:
    # One dimension at least: a tensor without dimensions would be rounded to the dtype of x before it is compared.
    return x >= (0 if threshold is None else threshold.reshape(-1))


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    with torch.autocast(left.device.type, enabled=False):  # autocast would round the sums to 16 bits
        return left @ right


def _channels_last(y: Tensor) -> Tensor:
    return torch.empty_like(y, memory_format=torch.channels_last).copy_(y)
