"""The public operators, registered as `torch.ops.bnn_kernels.*`: one node each for torch.compile and torch.export.

A call is checked (TypeError for dtypes, ValueError for the rest), sent through `dispatch`, and returns int32.
"""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import checks, dispatch

Pair = int | Sequence[int]


def pack_activations(x: Tensor, threshold: Tensor | None = None, groups: int = 1) -> Tensor:
    """Signs of an image as words: the bit of a value is `x >= threshold`, so sign(0) = +1 and NaN gives -1.

    Args:
        x: float32, float16, bfloat16 or float64 `[N, C, H, W]` in any memory format; channels-last is the natural one.
        threshold: floating point, one element or `[C]`; None is 0. Compared in the wider of both dtypes.
        groups: groups of the convolution that reads the words.

    Returns:
        int32 `[N, H, W, groups * words]`, see `bnn_kernels.layout`.

    Raises:
        TypeError: `x` or `threshold` is not floating point.
        ValueError: wrong shapes, groups that do not divide C, tensors on different devices.
    """
    return _pack_activations(x, _tensor_or_none(threshold), groups)


def pack_features(x: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Signs of features as words, as `pack_activations`: float `[..., C]` to int32 `[..., words]`."""
    return _pack_features(x, _tensor_or_none(threshold))


def binary_conv2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1,
                  groups: int = 1, pad_value: int = 0) -> Tensor:
    """Exact convolution of signs with signs.

    Args:
        x_words: int32 `[N, H, W, groups * words]` from `pack_activations` with the same groups.
        w_words: int32 `[O, kH, kW, words]` from `pack_weight`.
        channels: input channels C, of all groups together.
        stride, padding, dilation: as in `F.conv2d`, one int or (height, width).
        groups: divides C and O.
        pad_value: what out-of-image taps hold, 0, -1 or +1. With 0 they do not count.

    Returns:
        int32 `[N, O, H', W']` in channels-last memory.

    Raises:
        TypeError: words that are not int32.
        ValueError: wrong shapes or word counts, another pad_value, an empty output, different devices, or 2**24 terms per sum
            and more.
        RuntimeError: no backend, or not the forced one, can run the call; the reasons are given.
    """
    return _binary_conv2d(x_words, w_words, channels, _pair(stride), _pair(padding), _pair(dilation), groups,
                          checks.check_pad_value(pad_value))


def binary_conv_transpose2d(x_words: Tensor, w_words: Tensor, channels: int, stride: Pair = 1, padding: Pair = 0,
                            output_padding: Pair = 0, dilation: Pair = 1, groups: int = 1) -> Tensor:
    """Exact transposed convolution of signs with signs; taps that no input reaches do not count.

    Args:
        x_words: int32 `[N, H, W, groups * words]` from `pack_activations` with the same groups.
        w_words: int32 `[O, kH, kW, words]` from `pack_weight(transpose_weight(weight, groups))`.
        channels: input channels C, of all groups together.
        stride, padding, output_padding, dilation: as in `F.conv_transpose2d`, one int or (height, width).
        groups: divides C and O.

    Returns:
        int32 `[N, O, H', W']` in channels-last memory. Raises as `binary_conv2d`.
    """
    return _binary_conv_transpose2d(x_words, w_words, channels, _pair(stride), _pair(padding), _pair(output_padding),
                                    _pair(dilation), groups)


def binary_linear(x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
    """Exact product of signs with signs.

    Args:
        x_words: int32 `[..., words]` from `pack_features`.
        w_words: int32 `[O, words]` from `pack_weight`.
        features: C, the number of terms of each sum.

    Returns:
        int32 `[..., O]`. Raises as `binary_conv2d`.
    """
    return _binary_linear(x_words, w_words, features)


def _pair(value: Pair) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _tensor_or_none(threshold: Tensor | None) -> Tensor | None:
    if threshold is not None and not isinstance(threshold, Tensor):
        raise TypeError(f'threshold must be a tensor or None, got {type(threshold).__name__}: wrap it, torch.tensor([...]).')
    return threshold


_library = torch.library.Library('bnn_kernels', 'DEF')


def _register(signature: str, check: Callable[..., checks.Shape], memory_format=torch.contiguous_format):
    """Defines one operator: `check`, of the same name and arguments, accepts a call and knows the shape of its result."""
    op = check.__name__
    names = tuple(inspect.signature(check).parameters)

    def real(*arguments):
        check(*arguments)
        return dispatch.run(op, **dict(zip(names, arguments, strict=True)))

    def fake(*arguments):
        return torch.empty(check(*arguments), dtype=torch.int32, device=arguments[0].device, memory_format=memory_format)

    # No autograd: bits have no gradient. Library.define costs less per call than torch.library.custom_op.
    _library.define(f'{op}({signature}) -> Tensor', tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(op, real, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'bnn_kernels::{op}', fake, lib=_library)
    return getattr(torch.ops.bnn_kernels, op).default


_pack_activations = _register('Tensor x, Tensor? threshold, SymInt groups', checks.pack_activations)
_pack_features = _register('Tensor x, Tensor? threshold', checks.pack_features)
_binary_conv2d = _register(
    'Tensor x_words, Tensor w_words, SymInt channels, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, '
    'SymInt pad_value', checks.binary_conv2d, torch.channels_last)
_binary_conv_transpose2d = _register(
    'Tensor x_words, Tensor w_words, SymInt channels, SymInt[] stride, SymInt[] padding, SymInt[] output_padding, '
    'SymInt[] dilation, SymInt groups', checks.binary_conv_transpose2d, torch.channels_last)
_binary_linear = _register('Tensor x_words, Tensor w_words, SymInt features', checks.binary_linear)
