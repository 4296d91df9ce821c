"""The public operators of real layers in int8, registered like those of ops.py; the arithmetic is in int8_reference.py."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks
from .epilogue import Epilogue
from .geometry import Int8Conv2dGeometry
from .ops import Pair, _define, _int_pair, _pair
from .prepared_op import PreparedOp, shared_op


class Quantization(NamedTuple):
    """How real values are stored in eight bits: a stored q means `scale * (q - zero_point)`.

    Attributes:
        scale: float32 `[1]`, positive.
        zero_point: uint8 or int8 `[1]`; its dtype is that of the stored values.
    """

    scale: Tensor
    zero_point: Tensor


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values to eight bits, rounded to the nearest, halves to the even one, and cut at both ends; NaN gives the lower.

    Args:
        x: float32, float16 or bfloat16 `[...]`.
        scale, zero_point: as in `Quantization`.

    Returns:
        `[...]` of the dtype of `zero_point`; four dimensions in channels-last memory.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, tensors on different devices.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.5, 9.0]), torch.tensor([0.5]), torch.tensor([1], dtype=torch.uint8))
        tensor([ 0,  2, 19], dtype=torch.uint8)
    """
    if PreparedOp.direct(x):
        return shared_op('quantize')(x=x, scale=scale, zero_point=zero_point)
    return _quantize(x, scale, zero_point)


def int8_conv2d(x: Tensor, x_zero: Tensor, weight: Tensor, epilogue: Epilogue, shortcut: Tensor | None = None, *,
                stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1, dtype: torch.dtype = torch.float32,
                out: Quantization | None = None, pack: bool = False,
                keep: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """A real convolution in int8, affine, shortcut, non-linearity and the next layer's sign or eight bits in one operator.

    Args:
        x: uint8 or int8 `[N, C, H, W]`; channels-last memory is the natural one.
        x_zero: `[1]` or `[C]` of the dtype of `x`: the stored value that means 0. With one per channel an image of uint8 is
            read as it is: its mean is x_zero, rounded, and its deviation goes into the weight.
        weight: int8 `[O, C / groups, kH, kW]`.
        epilogue: parameters per output channel, P of them; `scale` holds that of the weight times that of `x`.
        shortcut: float32, float16 or bfloat16 `[N, P, H', W']`, added after the affine; None adds nothing.
        stride, padding, dilation, groups: as in `F.conv2d`; out-of-image taps mean 0.
        dtype: of the stream: float32, float16 or bfloat16.
        out: how the stream is stored in eight bits, in place of `dtype`.
        pack, keep: whether the words and the stream are wanted.

    Returns:
        words int32 `[N, H', W', out_groups * words]`, stream `[N, P, H', W']` in channels-last memory; None for the one that
        is not wanted. Exact: all backends return the same.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, more than 2**16 terms per sum, an unknown act, nothing wanted, an
            empty output, different devices. RuntimeError: no backend, or not the forced one, can run the call.

    Example:
        >>> x = quantize(torch.rand(1, 8, 6, 6), torch.tensor([1 / 255]), torch.tensor([0], dtype=torch.uint8))
        >>> weight = torch.randint(-127, 128, (16, 8, 3, 3), dtype=torch.int8)
        >>> epilogue = Epilogue(scale=torch.full((16,), 1e-4), bias=torch.zeros(16), act='relu')
        >>> _, stream = int8_conv2d(x, torch.tensor([0], dtype=torch.uint8), weight, epilogue, padding=1)
        >>> stream.shape
        torch.Size([1, 16, 6, 6])
    """
    return _convolve(x, x_zero, weight, stride, padding, dilation, groups, None, epilogue, shortcut, dtype, out, pack, keep)


def int8_conv_transpose2d(x: Tensor, x_zero: Tensor, weight: Tensor, epilogue: Epilogue, shortcut: Tensor | None = None, *,
                          stride: Pair = 1, padding: Pair = 0, output_padding: Pair = 0, dilation: Pair = 1, groups: int = 1,
                          dtype: torch.dtype = torch.float32, out: Quantization | None = None, pack: bool = False,
                          keep: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """`int8_conv2d` of a transposed convolution; `output_padding` as in `F.conv_transpose2d`.

    The weight is `[O, C / groups, kH, kW]`, as `transpose_weight` makes it of that of an `nn.ConvTranspose2d`. Raises as
    `int8_conv2d`.

    Example:
        >>> x, zero = torch.randint(0, 255, (1, 8, 6, 6), dtype=torch.uint8), torch.tensor([128], dtype=torch.uint8)
        >>> weight = torch.randint(-127, 128, (16, 8, 2, 2), dtype=torch.int8)
        >>> _, stream = int8_conv_transpose2d(x, zero, weight, Epilogue(torch.ones(16), torch.zeros(16)), stride=2)
        >>> stream.shape
        torch.Size([1, 16, 12, 12])
    """
    return _convolve(x, x_zero, weight, stride, padding, dilation, groups, _pair(output_padding), epilogue, shortcut, dtype,
                     out, pack, keep)


def int8_linear(x: Tensor, x_zero: Tensor, weight: Tensor, epilogue: Epilogue, *, dtype: torch.dtype = torch.float32,
                out: Quantization | None = None) -> Tensor:
    """A real linear layer in int8: `int8_conv2d` with a kernel of 1x1 on an image whose pixels are the rows.

    Args:
        x: uint8 or int8 `[..., C]`. x_zero: `[1]` or `[C]`. weight: int8 `[O, C]`.
        epilogue, dtype, out: as in `int8_conv2d`.

    Returns:
        `[..., P]`, P = O or a multiple of it. Raises as `int8_conv2d`.

    Example:
        >>> x, zero = torch.tensor([[3, 4]], dtype=torch.uint8), torch.tensor([0], dtype=torch.uint8)
        >>> weight = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
        >>> int8_linear(x, zero, weight, Epilogue(torch.ones(2), torch.zeros(2)))
        tensor([[ 7., -1.]])
    """
    if x.dim() < 1 or weight.dim() != 2:
        raise ValueError(f'int8_linear takes x [..., C] and weight [O, C], got {list(x.shape)} and {list(weight.shape)}.')
    *lead, channels = x.shape
    if x.numel() == 0 and channels:
        return torch.empty(*lead, epilogue.width, dtype=dtype if out is None else out.zero_point.dtype, device=x.device)
    image = x.reshape(1, 1, -1, channels).permute(0, 3, 1, 2)
    _, stream = int8_conv2d(image, x_zero, weight[:, :, None, None], epilogue, dtype=dtype, out=out)
    assert stream is not None, 'it is kept'
    return stream.permute(0, 2, 3, 1).reshape(*lead, epilogue.width)


def _convolve(x: Tensor, x_zero: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair, groups: int,
              output_padding: Pair | None, epilogue: Epilogue, shortcut: Tensor | None, dtype: torch.dtype,
              out: Quantization | None, pack: bool, keep: bool) -> tuple[Tensor | None, Tensor | None]:
    scale, bias, *act = epilogue
    out_scale, out_zero, dtype = (None, None, dtype) if out is None else (*out, out.zero_point.dtype)
    pairs = _int_pair(stride), _int_pair(padding), _int_pair(dilation)
    if PreparedOp.direct(x) and None not in pairs and type(groups) is int:
        geometry = _shared_geometry(weight.shape, *pairs, groups, output_padding if output_padding is None else _int_pair(
            output_padding))
        op = shared_op('int8_conv2d', ('geometry', geometry), ('dtype', dtype), ('pack', pack), ('keep', keep))
        words, stream = op(x=x, x_zero=x_zero, weight=weight, epilogue=epilogue, shortcut=shortcut, out_scale=out_scale,
                           out_zero=out_zero)
        return words if pack else None, stream if keep else None
    words, stream = _int8_conv2d(x, x_zero, weight, _pair(stride), _pair(padding), _pair(dilation), groups, output_padding,
                                 scale, bias, shortcut, *act, out_scale, out_zero, dtype, pack, keep)
    return words if pack else None, stream if keep else None


@lru_cache(4096)
def _shared_geometry(w_shape: tuple[int, ...], *numbers) -> Int8Conv2dGeometry:
    return Int8Conv2dGeometry.of(w_shape, *numbers)


def _empty_conv(call):
    words, stream = checks.int8_conv2d(**call)
    memory_format = torch.channels_last if call['keep'] else torch.contiguous_format
    return (torch.empty(words, dtype=torch.int32, device=call['x'].device),
            torch.empty(stream, dtype=call['dtype'], device=call['x'].device, memory_format=memory_format))


def _empty_quantized(call):
    shape = checks.quantize(**call)
    memory_format = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=call['zero_point'].dtype, device=call['x'].device, memory_format=memory_format)


_quantize = _define('Tensor x, Tensor scale, Tensor zero_point', checks.quantize, _empty_quantized)
_int8_conv2d = _define(
    'Tensor x, Tensor x_zero, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, '
    'SymInt[]? output_padding, Tensor scale, Tensor bias, Tensor? shortcut, str act, Tensor? gamma, Tensor? slope, '
    'Tensor? zeta, Tensor? threshold, SymInt out_groups, Tensor? out_scale, Tensor? out_zero, ScalarType dtype, bool pack, '
    'bool keep', checks.int8_conv2d, _empty_conv, '(Tensor, Tensor)')
