"""Every operator in plain torch, exact and obvious: what other backends are compared with, and what runs where they cannot.

Words are unpacked to -1 and +1 in float32 and multiplied as matrices: sums of fewer than 2**24 such terms are exact in any
order. Not with `F.conv2d`, for which a convolution library may choose Winograd or FFT, and these round.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import int8_reference, map_ops, sequence_reference
from .dispatch import Backend
from .epilogue import Epilogue, replicate, stream_of, words_of
from .geometry import Conv2dGeometry, Stem2dGeometry
from .layout import pack_bits, unpack_signs, unpack_weight


def pack_activations(x: Tensor, threshold: Tensor | None = None, groups: int = 1) -> Tensor:
    """Float `[N, C, H, W]` to int32 `[N, H, W, groups * words]`; see `bnn_kernels.pack_activations`."""
    return pack_bits(_at_least(x.permute(0, 2, 3, 1), threshold), groups)


def pack_features(x: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Float `[..., C]` to int32 `[..., words]`; see `bnn_kernels.pack_features`."""
    return pack_bits(_at_least(x, threshold))


def binary_conv2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """Int32 `[N, O, H', W']`; see `bnn_kernels.binary_conv2d`."""
    channels, _, kernel, stride, (vertical, horizontal), dilation, groups, pad_value, _ = geometry
    x = unpack_signs(x_words, channels, groups).permute(0, 3, 1, 2)
    x = F.pad(x, (horizontal, horizontal, vertical, vertical), value=float(pad_value))  # a 0 is neither sign: it adds nothing
    columns = F.unfold(x, kernel, dilation, 0, stride).unflatten(1, (groups, -1))  # [N, groups, C / groups * kH * kW, H' * W']
    weight = unpack_weight(w_words, geometry.group_channels).reshape(groups, geometry.group_outputs, -1)
    return _channels_last(_matmul(weight, columns).reshape(geometry.shape(x_words.shape)).to(torch.int32))


def binary_conv2d_sign(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor, flip: Tensor | None,
                       out_groups: int) -> Tensor:
    """Int32 `[N, H', W', out_groups * words]`; see `bnn_kernels.binary_conv2d_sign`."""
    acc = binary_conv2d(x_words, w_words, geometry)
    bits = replicate(acc, threshold.numel()).permute(0, 2, 3, 1) >= threshold
    return pack_bits(bits if flip is None else bits != flip, out_groups)


def binary_block2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, shortcut: Tensor | None,
                   dtype: torch.dtype, pack: bool, keep: bool, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Words `[N, H', W', out_groups * words]` and stream `[N, P, H', W']`; see `bnn_kernels.binary_block2d`."""
    stream = stream_of(binary_conv2d(x_words, w_words, geometry), epilogue, shortcut, dtype)
    words = words_of(stream, epilogue) if pack else x_words.new_empty(0)
    if out is not None:
        return words, out.copy_(stream)
    return words, _channels_last(stream) if keep else stream.new_empty(0)


def folded_block2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, shortcut: Tensor | None,
                   dtype: torch.dtype, pack: bool, keep: bool, fold: int) -> tuple[Tensor, Tensor]:
    """As `binary_block2d`: the channels of a narrower shortcut are repeated, one whole set behind the other, and the stream
    `[N, P / fold, H', W']` is the mean of `fold` neighbouring channels (`map_ops.mean_of_neighbours`)."""
    repeated = None if shortcut is None else shortcut.repeat(1, epilogue.width // shortcut.shape[1], 1, 1)
    words, stream = binary_block2d(x_words, w_words, geometry, epilogue, repeated, dtype, pack, keep)
    return words, _channels_last(map_ops.mean_of_neighbours(stream, fold)) if keep else stream


def downsample2d(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
    """`[N, O, H', W']` of the dtype of `x`; see `bnn_kernels.downsample2d`."""
    pooled = F.avg_pool2d(x.float(), pool, pool, ceil_mode=True, count_include_pad=False)
    return _channels_last((_matmul(weight, pooled.flatten(2)) + bias[:, None]).unflatten(2, pooled.shape[2:]).to(x.dtype))


def stem2d(x: Tensor, weight: Tensor, geometry: Stem2dGeometry, epilogue: Epilogue, dtype: torch.dtype,
           pack: bool) -> tuple[Tensor, Tensor]:
    """Words `[N, H', W', out_groups * words]` and stream `[N, P, H', W']`; see `bnn_kernels.stem2d`."""
    with torch.autocast(x.device.type, enabled=False):
        sums = F.conv2d(x.float(), weight, None, geometry.stride, geometry.padding)
        sums = F.max_pool2d(sums, geometry.window, geometry.window_stride, geometry.window_padding)
    stream = stream_of(sums, epilogue, None, dtype)
    return words_of(stream, epilogue) if pack else stream.new_empty(0, dtype=torch.int32), _channels_last(stream)


def binary_conv_transpose2d(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """Int32 `[N, O, H', W']`; see `bnn_kernels.binary_conv_transpose2d`."""
    channels, _, kernel, stride, padding, dilation, groups, _, output_padding = geometry
    assert output_padding is not None, 'of a transposed convolution'
    x = unpack_signs(x_words, channels, groups).permute(0, 3, 1, 2).flatten(2).unflatten(1, (groups, -1))
    weight = unpack_signs(w_words, geometry.group_channels)
    weight = weight.reshape(groups, -1, geometry.group_channels)  # rows are (O / groups, kH, kW)
    columns = _matmul(weight, x).flatten(1, 2)  # [N, O * kH * kW, HW]
    whole = geometry._replace(padding=(0, 0), output_padding=(0, 0)).size(x_words.shape[1:3])
    y = F.fold(columns, whole, kernel, dilation, 0, stride)
    (top, left), (bottom, right) = padding, [p - o for p, o in zip(padding, output_padding, strict=True)]
    y = F.pad(y, (-left, -right, -top, -bottom))  # negative widths crop
    return _channels_last(y.reshape(geometry.shape(x_words.shape)).to(torch.int32))


def binary_linear(x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
    """Int32 `[..., O]`; see `bnn_kernels.binary_linear`."""
    return _matmul(unpack_signs(x_words, features), unpack_signs(w_words, features).t()).to(torch.int32)


class Reference(Backend):
    """Runs every operator on every device."""

    name = 'reference'
    pack_activations = staticmethod(pack_activations)
    pack_features = staticmethod(pack_features)
    binary_conv2d = staticmethod(binary_conv2d)
    binary_conv2d_sign = staticmethod(binary_conv2d_sign)
    binary_block2d = staticmethod(binary_block2d)
    folded_block2d = staticmethod(folded_block2d)
    downsample2d = staticmethod(downsample2d)
    stem2d = staticmethod(stem2d)
    binary_conv_transpose2d = staticmethod(binary_conv_transpose2d)
    binary_linear = staticmethod(binary_linear)
    quantize = staticmethod(int8_reference.quantize)
    int8_conv2d = staticmethod(int8_reference.int8_conv2d)
    int8_pooled2d = staticmethod(int8_reference.int8_pooled2d)
    pool2d = staticmethod(map_ops.windows_of)
    to_planes = staticmethod(map_ops.planes_of)
    concat2d = staticmethod(map_ops.maps_side_by_side)
    weighted_sum2d = staticmethod(map_ops.weighted_sum_of)
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
