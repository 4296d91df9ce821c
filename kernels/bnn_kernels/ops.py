"""The public operators, registered as `torch.ops.bnn_kernels.*`: one node each for torch.compile and torch.export.

A call is checked (TypeError for dtypes, ValueError for the rest) and sent through `dispatch`. Schemas know numbers and tensors
only: here alone objects are taken apart for them, and made again of their arguments.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import NoneType

import torch
from torch import Tensor

from . import checks
from .attention import Planes
from .epilogue import Epilogue
from .geometry import Conv2dGeometry, Stem2dGeometry
from .prepared_op import PreparedOp, shared_op
from .recurrence import Recurrence

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

    Example:
        >>> pack_activations(torch.randn(1, 40, 14, 14)).shape
        torch.Size([1, 14, 14, 2])
    """
    if PreparedOp.direct(x) and (threshold is None or type(threshold) is Tensor) and type(groups) is int:
        return shared_op('pack_activations', ('groups', groups))(x=x, threshold=threshold)
    return _pack_activations(x, _tensor_or_none(threshold), groups)


def pack_features(x: Tensor, threshold: Tensor | None = None) -> Tensor:
    """Signs of features as words, as `pack_activations`: float `[..., C]` to int32 `[..., words]`.

    Raises as `pack_activations`.

    Example:
        >>> pack_features(torch.tensor([[0.5, -2.0, 0.0]]))
        tensor([[5]], dtype=torch.int32)
    """
    if PreparedOp.direct(x) and (threshold is None or type(threshold) is Tensor):
        return shared_op('pack_features')(x=x, threshold=threshold)
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

    Example:
        >>> x, weight = torch.randn(1, 40, 14, 14), torch.randn(64, 40, 3, 3)
        >>> y = binary_conv2d(pack_activations(x), pack_weight(weight), channels=40, padding=1)
        >>> signs = [torch.where(tensor >= 0, 1.0, -1.0) for tensor in (x, weight)]
        >>> torch.equal(y, F.conv2d(*signs, padding=1).int())
        True
    """
    if PreparedOp.direct(x_words) and type(w_words) is Tensor:
        pairs = _int_pair(stride), _int_pair(padding), _int_pair(dilation)
        if None not in pairs and type(channels) is type(groups) is type(pad_value) is int:
            return _shared_conv2d(w_words.shape, channels, *pairs, groups, pad_value)(x_words=x_words, w_words=w_words)
    return _binary_conv2d(x_words, w_words, channels, _pair(stride), _pair(padding), _pair(dilation), groups,
                          _pad_value(pad_value))


def binary_conv2d_sign(x_words: Tensor, w_words: Tensor, channels: int, threshold: Tensor, flip: Tensor | None = None, *,
                       stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1, pad_value: int = 0,
                       out_groups: int = 1) -> Tensor:
    """`binary_conv2d` and the next sign in integers: the bit of channel j is `(acc[j % O] >= threshold[j]) != flip[j]`.

    Args:
        x_words, w_words, channels, stride, padding, dilation, groups, pad_value: as in `binary_conv2d`.
        threshold: int32 `[P]`, P = O or a multiple of it (replicas).
        flip: bool `[P]` for channels whose value falls with the accumulator; None flips none.
        out_groups: groups of the convolution that reads the words.

    Returns:
        int32 `[N, H', W', out_groups * words]`. Raises as `binary_conv2d`.

    Example:
        >>> x, weight = torch.randn(1, 40, 14, 14), torch.randn(64, 40, 3, 3)
        >>> words = binary_conv2d_sign(pack_activations(x), pack_weight(weight), 40, torch.zeros(64, dtype=torch.int32))
        >>> words.shape
        torch.Size([1, 12, 12, 2])
    """
    return _binary_conv2d_sign(x_words, w_words, channels, _pair(stride), _pair(padding), _pair(dilation), groups,
                               _pad_value(pad_value), threshold, flip, out_groups)


def binary_block2d(x_words: Tensor, w_words: Tensor, channels: int, epilogue: Epilogue, shortcut: Tensor | None = None, *,
                   stride: Pair = 1, padding: Pair = 0, dilation: Pair = 1, groups: int = 1, pad_value: int = 0,
                   dtype: torch.dtype = torch.float32, pack: bool = True,
                   keep: bool = True) -> tuple[Tensor | None, Tensor | None]:
    """`binary_conv2d`, affine, shortcut, non-linearity and the next layer's sign in one operator; see `epilogue.py`.

    Args:
        x_words, w_words, channels, stride, padding, dilation, groups, pad_value: as in `binary_conv2d`.
        epilogue: the parameters per output channel, P of them.
        shortcut: float32, float16 or bfloat16 `[N, P, H', W']`, added after the affine; None adds nothing.
        dtype: of the stream: float32, float16 or bfloat16. The sign is taken of the rounded value.
        pack, keep: whether the words and the stream are wanted.

    Returns:
        words int32 `[N, H', W', out_groups * words]`, stream `[N, P, H', W']` in channels-last memory; None for the one that
        is not wanted. `words` equals `pack_activations(stream, epilogue.threshold, epilogue.out_groups)`.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, an unknown act, parameters that do not belong to it, nothing
            wanted, and as `binary_conv2d`. RuntimeError: as `binary_conv2d`.

    Example:
        >>> x, weight = torch.randn(1, 64, 14, 14), torch.randn(64, 64, 3, 3)
        >>> epilogue = Epilogue(scale=torch.full((64,), 0.1), bias=torch.zeros(64), act='prelu', slope=torch.full((64,), 0.25))
        >>> words, stream = binary_block2d(pack_activations(x), pack_weight(weight), 64, epilogue, shortcut=x, padding=1)
        >>> torch.equal(words, pack_activations(stream))
        True
    """
    scale, bias, *act = epilogue
    words, stream = _binary_block2d(x_words, w_words, channels, _pair(stride), _pair(padding), _pair(dilation), groups,
                                    _pad_value(pad_value), scale, bias, shortcut, *act, dtype, pack, keep)
    return words if pack else None, stream if keep else None


def binary_block2d_(stream: Tensor, x_words: Tensor, w_words: Tensor, channels: int, epilogue: Epilogue, *, stride: Pair = 1,
                    padding: Pair = 0, dilation: Pair = 1, groups: int = 1, pad_value: int = 0,
                    pack: bool = True) -> Tensor | None:
    """`binary_block2d` in place: `stream` `[N, P, H', W']`, channels-last, is the shortcut and becomes the result.

    Returns the words, or None without `pack`. Raises as `binary_block2d`; ValueError also for another memory format.

    Example:
        >>> x = torch.randn(1, 64, 14, 14).to(memory_format=torch.channels_last)
        >>> x_words, w_words = pack_activations(x), pack_weight(torch.randn(64, 64, 3, 3))
        >>> words = binary_block2d_(x, x_words, w_words, 64, Epilogue(torch.ones(64), torch.zeros(64)), padding=1)
        >>> torch.equal(words, pack_activations(x))
        True
    """
    words = _binary_block2d_(stream, x_words, w_words, channels, _pair(stride), _pair(padding), _pair(dilation), groups,
                             _pad_value(pad_value), *epilogue, pack)
    return words if pack else None


def downsample2d(x: Tensor, weight: Tensor, bias: Tensor, pool: int = 1) -> Tensor:
    """The real-valued shortcut of a binary ResNet: average pooling, then a 1x1 convolution with its norm folded in.

    Args:
        x: float32, float16 or bfloat16 `[N, C, H, W]`.
        weight: float32 `[O, C]`. bias: float32 `[O]`.
        pool: window and stride of the pooling; the last windows are cut at the border and average what they hold.

    Returns:
        `[N, O, ceil(H / pool), ceil(W / pool)]` of the dtype of `x` in channels-last memory, summed in float32 in any order:
        the one operator that is not exact. Raises TypeError for a wrong dtype, ValueError for wrong shapes.

    Example:
        >>> downsample2d(torch.randn(1, 64, 15, 15), torch.randn(128, 64), torch.zeros(128), pool=2).shape
        torch.Size([1, 128, 8, 8])
    """
    return _downsample2d(x, weight, bias, pool)


def stem2d(x: Tensor, weight: Tensor, epilogue: Epilogue, *, stride: Pair = 1, padding: Pair = 0, window: Pair = 1,
           window_stride: Pair | None = None, window_padding: Pair = 0, dtype: torch.dtype = torch.float32,
           pack: bool = True) -> tuple[Tensor | None, Tensor]:
    """The real-valued stem of a network: convolution, max pooling, affine, non-linearity and the next layer's sign.

    Args:
        x: float32, float16 or bfloat16 `[N, C, H, W]` in any memory format; made for an image's few channels.
        weight: float32 `[O, C, kH, kW]`.
        epilogue: the parameters per output channel, P of them; see `epilogue.py`. A bias of the convolution goes into its own.
        stride, padding: of the convolution, as in `F.conv2d`.
        window, window_stride, window_padding: of the pooling, as in `F.max_pool2d`; a window of 1 pools nothing. The stride
            is by default the window.
        dtype: of the stream: float32, float16 or bfloat16. The sign is taken of the rounded value.
        pack: whether the words are wanted.

    Returns:
        words int32 `[N, H', W', out_groups * words]` or None, stream `[N, P, H', W']` in channels-last memory. The convolution
        is summed in float32 in any order, as in `downsample2d`; all else is exact: `words` equals
        `pack_activations(stream, epilogue.threshold, epilogue.out_groups)`.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, an empty output, padding of more than half a window, an unknown
            act, parameters that do not belong to it. RuntimeError: as `binary_conv2d`.

    Example:
        >>> image, epilogue = torch.randn(1, 3, 64, 64), Epilogue(torch.ones(64), torch.zeros(64), act='relu')
        >>> words, stream = stem2d(image, torch.randn(64, 3, 7, 7), epilogue, stride=2, padding=3, window=3, window_stride=2,
        ...                        window_padding=1)
        >>> words.shape, stream.shape
        (torch.Size([1, 16, 16, 2]), torch.Size([1, 64, 16, 16]))
    """
    words, stream = _stem2d(x, weight, _pair(stride), _pair(padding), _pair(window),
                            _pair(window if window_stride is None else window_stride), _pair(window_padding), *epilogue, dtype,
                            pack)
    return words if pack else None, stream


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

    Example:
        >>> layer = nn.ConvTranspose2d(40, 64, 2, stride=2)
        >>> w_words = pack_weight(transpose_weight(layer.weight))
        >>> binary_conv_transpose2d(pack_activations(torch.randn(1, 40, 7, 7)), w_words, 40, stride=2).shape
        torch.Size([1, 64, 14, 14])
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

    Example:
        >>> binary_linear(pack_features(torch.ones(1, 3)), pack_weight(torch.tensor([[1.0, 1.0, -1.0]])), 3)
        tensor([[1]], dtype=torch.int32)
    """
    if PreparedOp.direct(x_words) and type(w_words) is Tensor and type(features) is int:
        return shared_op('binary_linear', ('features', features))(x_words=x_words, w_words=w_words)
    return _binary_linear(x_words, w_words, features)


def _pair(value: Pair) -> Sequence[int]:
    return (value, value) if isinstance(value, int) else value


def _int_pair(value: Pair) -> tuple[int, int] | None:
    """The pair, where it is nothing else than one or two ints."""
    if type(value) is int:
        return value, value
    if isinstance(value, tuple | list) and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value[0], value[1]
    return None


def _pad_value(value: int) -> int:
    if value not in (0, -1, 1):  # before the schema's own sentence, for a float
        raise ValueError(f'pad_value must be 0, -1 or 1, got {value}: 0 leaves out-of-image taps out of the sum.')
    return int(value)


def _tensor_or_none(threshold: Tensor | None) -> Tensor | None:
    if threshold is not None and not isinstance(threshold, Tensor):
        raise TypeError(f'threshold must be a tensor or None, got {type(threshold).__name__}: wrap it, torch.tensor([...]).')
    return threshold


@lru_cache(4096)
def _geometry(kind: type, w_shape: tuple[int, ...], **numbers) -> Conv2dGeometry | Stem2dGeometry:
    """Made once for each signature; not for symbolic numbers, which have no hash."""
    return kind.of(w_shape, **numbers)


@lru_cache(1024)
def _shared_conv2d(w_shape: tuple[int, ...], *numbers) -> PreparedOp:
    return shared_op('binary_conv2d', ('geometry', Conv2dGeometry.of(w_shape, *numbers)))


_library = torch.library.Library('bnn_kernels', 'DEF')


def _define(signature: str, check: Callable, empty: Callable[[dict], Tensor | tuple[Tensor, ...]], result: str = 'Tensor',
            in_place: bool = False):
    """Defines one operator, named like its check. No autograd: bits have no gradient.

    Args:
        signature, result: of the schema, with the fields of each object that the check takes in its place.
        check: takes a call, and returns the shapes of its results.
        empty: the results of a call for a fake kernel.
        in_place: `stream` is the shortcut and takes the result, only the words are returned.
    """
    op = check.__name__
    # Library.define costs less per call than torch.library.custom_op.
    _library.define(f'{op}({signature}) -> {result}', tags=(torch.Tag.pt2_compliant_tag,))
    overload = getattr(torch.ops.bnn_kernels, op).default
    names = [argument.name for argument in overload._schema.arguments]
    weight = 'w_words' if 'w_words' in names else 'weight'
    objects = [(parameter.name, parameter.annotation, [field for field in parameter.annotation._fields if field in names])
               for parameter in inspect.signature(check).parameters.values()
               if parameter.name not in names and parameter.default is inspect.Parameter.empty]

    def described(arguments: Sequence, of: Callable = _geometry.__wrapped__) -> dict:
        call = dict(zip(names, arguments, strict=True))
        for name, kind, fields in objects:
            parts = {field: tuple(value) if isinstance(value := call.pop(field), list) else value for field in fields}
            call[name] = of(kind, call[weight].shape, **parts) if name == 'geometry' else kind(**parts)
        return call

    def real(*arguments):
        call = described(arguments, _geometry)
        own = dict(call)
        if in_place:
            stream = own.pop('stream')
            own |= dict(shortcut=stream, dtype=stream.dtype, keep=True, out=stream)
        inputs = {name: value for name, value in own.items() if isinstance(value, COME)}
        try:
            result = shared_op(op.rstrip('_'), *[(name, own[name]) for name in own if name not in inputs])(**inputs)
        except Exception:
            check(**call)  # its sentence first: it knows the arguments by these names
            raise
        return result[0] if in_place else result

    _library.impl(op, real, 'CompositeExplicitAutograd')
    torch.library.register_fake(f'bnn_kernels::{op}', lambda *arguments: empty(described(arguments)), lib=_library)
    return overload


COME = Tensor, NoneType, Epilogue, Recurrence, Planes  # with each call; numbers are bound


def _register(signature: str, check: Callable[..., checks.Shape], dtype: torch.dtype | None = torch.int32,
              memory_format=torch.contiguous_format):
    """An operator with one result, of `dtype`, or that of the first argument where this is None."""
    def empty(call):
        first = next(iter(call.values()))
        return torch.empty(check(**call), dtype=dtype or first.dtype, device=first.device, memory_format=memory_format)

    return _define(signature, check, empty)


def _empty_block(call):
    words, stream = checks.binary_block2d(**call)
    memory_format = torch.channels_last if call['keep'] else torch.contiguous_format
    return (torch.empty(words, dtype=torch.int32, device=call['x_words'].device),
            torch.empty(stream, dtype=call['dtype'], device=call['x_words'].device, memory_format=memory_format))


def _empty_words(call):
    return torch.empty(checks.binary_block2d_(**call), dtype=torch.int32, device=call['stream'].device)


def _empty_stem(call):
    words, stream = checks.stem2d(**call)
    return (torch.empty(words, dtype=torch.int32, device=call['x'].device),
            torch.empty(stream, dtype=call['dtype'], device=call['x'].device, memory_format=torch.channels_last))


_CONV = ('Tensor x_words, Tensor w_words, SymInt channels, SymInt[] stride, SymInt[] padding, SymInt[] dilation, '
         'SymInt groups, SymInt pad_value')
_AFFINE = 'Tensor scale, Tensor bias'
_ACT = 'str act, Tensor? gamma, Tensor? slope, Tensor? zeta, Tensor? threshold, SymInt out_groups'

_pack_activations = _register('Tensor x, Tensor? threshold, SymInt groups', checks.pack_activations)
_pack_features = _register('Tensor x, Tensor? threshold', checks.pack_features)
_binary_conv2d = _register(_CONV, checks.binary_conv2d, memory_format=torch.channels_last)
_binary_conv2d_sign = _register(f'{_CONV}, Tensor threshold, Tensor? flip, SymInt out_groups', checks.binary_conv2d_sign)
_binary_block2d = _define(f'{_CONV}, {_AFFINE}, Tensor? shortcut, {_ACT}, ScalarType dtype, bool pack, bool keep',
                          checks.binary_block2d, _empty_block, '(Tensor, Tensor)')
_binary_block2d_ = _define(f'Tensor(a!) stream, {_CONV}, {_AFFINE}, {_ACT}, bool pack', checks.binary_block2d_, _empty_words,
                           in_place=True)
_downsample2d = _register('Tensor x, Tensor weight, Tensor bias, SymInt pool', checks.downsample2d, None, torch.channels_last)
_stem2d = _define('Tensor x, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] window, SymInt[] window_stride, '
                  f'SymInt[] window_padding, {_AFFINE}, {_ACT}, ScalarType dtype, bool pack', checks.stem2d, _empty_stem,
                  '(Tensor, Tensor)')
_binary_conv_transpose2d = _register(
    'Tensor x_words, Tensor w_words, SymInt channels, SymInt[] stride, SymInt[] padding, SymInt[] output_padding, '
    'SymInt[] dilation, SymInt groups', checks.binary_conv_transpose2d, memory_format=torch.channels_last)
_binary_linear = _register('Tensor x_words, Tensor w_words, SymInt features', checks.binary_linear)
