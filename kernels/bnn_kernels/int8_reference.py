"""Real layers in int8, and their arithmetic: the one place that says in which order. Plain torch, exact and obvious.

An activation x is stored as q in uint8 or int8 and means scale * (q - zero). Weights are int8 around 0, one scale per output
channel. What lies outside of the image means 0. For every output position and channel j:

    acc = sum over the taps inside of (q - zero) * weight[j]                    int32, exact
    v   = the formula of `epilogue.py` from acc on, in float32                  scale[j] holds both scales, and a norm's
    bit = v >= threshold[j]                                                     of the rounded stream where it is a float
    q'  = round(clamp(v * (1 / out_scale), low - out_zero, high - out_zero)) + out_zero

[low, high] are the ends of the dtype. `clamp` gives its lower end for NaN, `round` takes halves to the even neighbour, and
every operation in float32 rounds by itself, without FMA contraction, so that all backends agree bit for bit.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .epilogue import Epilogue, stream_of, words_of
from .geometry import Int8Conv2dGeometry, Pool2dGeometry


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The module's last line: float `[...]` to the dtype of `zero_point`; see `bnn_kernels.quantize`."""
    ends, zero = torch.iinfo(zero_point.dtype), zero_point.to(torch.int32)
    v, low, high = x.float() * (1 / scale), (ends.min - zero).float(), (ends.max - zero).float()
    v = torch.where(v > low, v, low)
    v = torch.where(v < high, v, high)
    q = (v.round().to(torch.int32) + zero).to(zero_point.dtype).reshape(x.shape)
    return q.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.contiguous_format)


def int8_conv2d(x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, epilogue: Epilogue,
                shortcut: Tensor | None, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype, pack: bool,
                keep: bool) -> tuple[Tensor, Tensor]:
    """Words `[N, H', W', out_groups * words]` and stream `[N, P, H', W']`; see `bnn_kernels.int8_conv2d`."""
    sums = _transposed if geometry.transposed else _sums
    acc = sums(x.double() - x_zero.double().view(-1, 1, 1), weight, geometry).to(torch.int32)
    return _finished(acc, epilogue, shortcut, out_scale, out_zero, dtype, pack, keep)


def _finished(acc: Tensor, epilogue: Epilogue, shortcut: Tensor | None, out_scale: Tensor | None, out_zero: Tensor | None,
              dtype: torch.dtype, pack: bool, keep: bool) -> tuple[Tensor, Tensor]:
    """What follows the sums."""
    if out_scale is None or out_zero is None:
        stream = stream_of(acc, epilogue, shortcut, dtype)
        words = words_of(stream, epilogue) if pack else stream.new_empty(0, dtype=torch.int32)
    else:
        v = stream_of(acc, epilogue, shortcut, torch.float32)
        words = words_of(v, epilogue) if pack else v.new_empty(0, dtype=torch.int32)
        stream = quantize(v, out_scale, out_zero)
    return words, stream.contiguous(memory_format=torch.channels_last) if keep else stream.new_empty(0)


def int8_pooled2d(x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, window: Pool2dGeometry,
                  epilogue: Epilogue, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype,
                  pack: bool) -> tuple[Tensor, Tensor]:
    """`int8_conv2d` with the largest sum of each window in the place of its sums."""
    acc = _sums(x.double() - x_zero.double().view(-1, 1, 1), weight, geometry)
    acc = F.max_pool2d(acc, window.window, window.stride, window.padding, ceil_mode=window.ceil).to(torch.int32)
    return _finished(acc, epilogue, None, out_scale, out_zero, dtype, pack, True)


def _sums(x: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry) -> Tensor:
    """As matrices of float64, which holds every sum in any order; a convolution library might choose Winograd or FFT."""
    groups, (vertical, horizontal) = geometry.groups, geometry.padding
    x = F.pad(x, (horizontal, horizontal, vertical, vertical))
    columns = F.unfold(x, geometry.kernel, geometry.dilation, 0, geometry.stride).unflatten(1, (groups, -1))
    y = weight.double().reshape(groups, geometry.group_outputs, -1) @ columns
    return y.reshape(len(x), geometry.outputs, *geometry.size([side - 2 * p for side, p in zip(
        x.shape[2:], geometry.padding, strict=True)]))


def _transposed(x: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry) -> Tensor:
    size, groups = x.shape[2:], geometry.groups
    assert geometry.output_padding is not None, 'of a transposed convolution'
    rows = weight.double().unflatten(0, (groups, -1)).movedim(2, -1).reshape(groups, -1, geometry.group_channels)
    columns = (rows @ x.flatten(2).unflatten(1, (groups, -1))).flatten(1, 2)  # [N, O * kH * kW, H W]
    whole = geometry._replace(padding=(0, 0), output_padding=(0, 0)).size(size)
    y = F.fold(columns, whole, geometry.kernel, geometry.dilation, 0, geometry.stride)
    (top, left), (bottom, right) = geometry.padding, [
        p - o for p, o in zip(geometry.padding, geometry.output_padding, strict=True)]
    return F.pad(y, (-left, -right, -top, -bottom))  # negative widths crop
