"""What an operator computes apart from its tensors, described once: hashable objects that every backend takes.

A geometry is valid by construction. It knows nothing of an image: `size` and `shape` tell what becomes of one. Sizes may be
symbolic. `Epilogue`, `Recurrence` and `Planes` describe in the same way what follows the integer sums.
"""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch.nn import functional as F

from .layout import words_per_group

INT8_TERMS_LIMIT = 2**16  # of products of at most 255 * 128: their sum fits int32
TERMS_LIMIT = 2**24  # float32 holds every integer up to here: the +-1 convolution of the latent model is exact below it
STEPS_LIMIT = 2**31  # of strides, paddings, dilations and pools: positions then fit into 64 bits
Pair = tuple[int, int]
IntOrPair = int | Sequence[int]
Ranges = list[tuple[int, int]]


class _Conv2d(NamedTuple):
    channels: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    pad_value: int
    output_padding: Pair | None


class Conv2dGeometry(_Conv2d):
    """A convolution of signs with signs, or a transposed one. Pairs are (height, width); one int stands for both.

    Attributes:
        channels: input channels C, of all groups together.
        outputs: output channels O, of all groups together.
        kernel: taps.
        stride, padding, dilation: as in `F.conv2d`.
        groups: divides C and O.
        pad_value: what out-of-image taps hold, 0, -1 or +1. With 0 they do not count.
        output_padding: as in `F.conv_transpose2d`, which it makes of the convolution; None for an ordinary one.

    Raises:
        ValueError: a number that is out of range, groups that do not divide, or 2**24 terms per sum and more.

    Example:
        >>> Conv2dGeometry(64, 128, kernel=3, stride=2, padding=1).size((56, 56))
        (28, 28)
    """

    def __new__(cls, channels: int, outputs: int, kernel: IntOrPair, stride: IntOrPair = 1, padding: IntOrPair = 0,
                dilation: IntOrPair = 1, groups: int = 1, pad_value: int = 0, output_padding: IntOrPair | None = None):
        words_per_group(channels, groups)
        stride, padding, dilation = pair('stride', stride, 1), pair('padding', padding, 0), pair('dilation', dilation, 1)
        kernel = pair('kernel', kernel, 1)
        if pad_value not in (0, -1, 1):
            raise ValueError(f'pad_value must be 0, -1 or 1, got {pad_value}: 0 leaves out-of-image taps out of the sum.')
        if output_padding is not None:
            output_padding = pair('output_padding', output_padding, 0)
            if any(o >= s and o >= d for o, s, d in zip(output_padding, stride, dilation, strict=True)):
                raise ValueError(f'output_padding={list(output_padding)} must be smaller than stride={list(stride)} or '
                                 f'dilation={list(dilation)}: choose a smaller one.')
            if pad_value:
                raise ValueError(f'a transposed convolution has pad_value=0, got {pad_value}.')
        if outputs < 1:
            raise ValueError(f'w_words must have at least one output channel, got {outputs}.')
        if outputs % groups:
            raise ValueError(f'groups={groups} does not divide the {outputs} output channels of w_words: '
                             f'choose a group count that does.')
        check_terms(prod(kernel) * (channels // groups))
        return super().__new__(cls, channels, outputs, kernel, stride, padding, dilation, groups, int(pad_value),
                               output_padding)

    @classmethod
    def _make(cls, iterable):  # `_replace` checks, too
        return cls(*iterable)

    @classmethod
    def of(cls, w_shape: Sequence[int], channels: int, *numbers, **named) -> 'Conv2dGeometry':
        """That of weights `[O, kH, kW, words]`; the other arguments as above."""
        if len(w_shape) != 4 or min(w_shape[1:3]) < 1:
            raise ValueError(f'w_words must be [O, kH, kW, words] with at least one tap, got {list(w_shape)}: pack with '
                             f'pack_weight.')
        return cls(channels, w_shape[0], w_shape[1:3], *numbers, **named)

    @property
    def transposed(self) -> bool:
        return self.output_padding is not None

    @cached_property
    def taps(self) -> int:
        return prod(self.kernel)

    @cached_property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @cached_property
    def group_outputs(self) -> int:
        return self.outputs // self.groups

    @cached_property
    def terms(self) -> int:
        """Of one sum, where no tap lies outside: the fan-in."""
        return self.taps * self.group_channels

    @cached_property
    def words(self) -> int:
        """Of one tap of one group."""
        return words_per_group(self.channels, self.groups)

    @cached_property
    def pixel_words(self) -> int:
        """Of a pixel of the input."""
        return self.groups * self.words

    @cached_property
    def w_shape(self) -> tuple[int, int, int, int]:
        """Of the packed weight: `[O, kH, kW, words]`."""
        return self.outputs, *self.kernel, self.words

    def size(self, image: Sequence[int]) -> Pair:
        """Height and width of the output for those of an image; less than 1 where the kernel does not fit."""
        if self.output_padding is None:
            return window_positions(image, self.kernel, self.stride, self.padding, self.dilation)
        numbers = zip(image, self.kernel, self.stride, self.padding, self.dilation, self.output_padding, strict=True)
        height, width = ((i - 1) * s - 2 * p + d * (k - 1) + o + 1 for i, k, s, p, d, o in numbers)
        return height, width

    def shape(self, x_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """Of the sums for words `[N, H, W, groups * words]`: `[N, O, H', W']`."""
        return x_shape[0], self.outputs, *self.size(x_shape[1:3])


class Int8Conv2dGeometry(Conv2dGeometry):
    """A convolution of int8 or uint8 with int8 weights, or a transposed one: out-of-image taps do not count.

    Attributes: as in `Conv2dGeometry`, with pad_value 0.

    Raises:
        ValueError: as `Conv2dGeometry`, and for more than 2**16 terms per sum.
    """

    @classmethod
    def of(cls, w_shape: Sequence[int], stride: IntOrPair = 1, padding: IntOrPair = 0, dilation: IntOrPair = 1,
           groups: int = 1, output_padding: IntOrPair | None = None) -> 'Int8Conv2dGeometry':
        """That of a weight `[O, C / groups, kH, kW]`; the other arguments as above."""
        if len(w_shape) != 4 or min(w_shape) < 1:
            raise ValueError(f'weight must be [O, C / groups, kH, kW] and hold something, got {list(w_shape)}.')
        if prod(w_shape[1:]) > INT8_TERMS_LIMIT:
            raise ValueError(f'one output sums {prod(w_shape[1:])} products of int8, the limit is 2**16: split the channels '
                             f'and add the results.')
        return cls(w_shape[1] * groups, w_shape[0], w_shape[2:], stride, padding, dilation, groups, 0, output_padding)

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        """Of the weight: `[O, C / groups, kH, kW]`."""
        return self.outputs, self.group_channels, *self.kernel


def linear_geometry(features: int, outputs: int) -> Conv2dGeometry:
    """A linear layer as the 1x1 convolution of an image whose pixels are its rows."""
    return Conv2dGeometry(features, outputs, 1)


class _Stem2d(NamedTuple):
    channels: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    window: Pair
    window_stride: Pair
    window_padding: Pair


class Stem2dGeometry(_Stem2d):
    """A convolution of an image and max pooling. Pairs are (height, width); one int stands for both.

    Attributes:
        channels, outputs: C and O of the convolution.
        kernel: its taps.
        stride, padding: as in `F.conv2d`.
        window, window_stride, window_padding: of the pooling, as in `F.max_pool2d`.

    Raises:
        ValueError: a number that is out of range, or padding of more than half a window.
    """

    def __new__(cls, channels: int, outputs: int, kernel: IntOrPair, stride: IntOrPair = 1, padding: IntOrPair = 0,
                window: IntOrPair = 1, window_stride: IntOrPair = 1, window_padding: IntOrPair = 0):
        if channels < 1 or outputs < 1:
            raise ValueError(f'a stem has at least one channel and one output channel, got {channels} and {outputs}.')
        window, window_padding = pair('window', window, 1), pair('window_padding', window_padding, 0)
        window_stride = pair('window_stride', window_stride, 1)
        if any(2 * p > k for p, k in zip(window_padding, window, strict=True)):
            raise ValueError(f'window_padding must be at most half of the window {list(window)}, got {list(window_padding)}.')
        return super().__new__(cls, channels, outputs, pair('kernel', kernel, 1), pair('stride', stride, 1),
                               pair('padding', padding, 0), window, window_stride, window_padding)

    @classmethod
    def _make(cls, iterable):
        return cls(*iterable)

    @classmethod
    def of(cls, w_shape: Sequence[int], *numbers, **named) -> 'Stem2dGeometry':
        """That of a weight `[O, C, kH, kW]`; the other arguments as above."""
        if len(w_shape) != 4 or min(w_shape) < 1:
            raise ValueError(f'weight must be [O, C, kH, kW] and hold something, got {list(w_shape)}.')
        return cls(w_shape[1], w_shape[0], w_shape[2:], *numbers, **named)

    def sizes(self, image: Sequence[int]) -> tuple[Pair, Pair]:
        """Height and width behind the convolution and behind the pooling; less than 1 where a window does not fit."""
        sums = window_positions(image, self.kernel, self.stride, self.padding)
        return sums, window_positions(sums, self.window, self.window_stride, self.window_padding)


class Pool2dGeometry(NamedTuple):
    """Windows of a map, and what becomes of each.

    Attributes:
        kind: `'max'` or `'mean'` of a window, or `'nearest'`: the map enlarged, to `size` or by the factors in `window`.
        window, stride, padding: as in `F.max_pool2d`; what lies outside counts for nothing.
        ceil: whether a last window that is not whole counts.
        size: (height, width) of the result. With `'mean'` the map is cut into so many windows, as by
            `F.adaptive_avg_pool2d`; None: by the window, and `'nearest'` takes that of a shortcut.
        fold: how many groups of channels become one, by their mean.
    """

    kind: str
    window: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    ceil: bool = False
    size: Pair | None = None
    fold: int = 1

    def ranges(self, image: Sequence[int], size: Sequence[int] | None = None) -> tuple[Ranges, Ranges]:
        """First position of each window and that behind its last, along both axes; `size`: of a shortcut."""
        return _ranges(self, tuple(image), tuple(size) if self.size is None and size is not None else self.size)

    def shape(self, x_shape: Sequence[int], shortcut: Sequence[int] | None = None) -> tuple[int, int, int, int]:
        """Of the result for a map `[N, fold * C, H, W]` and the shape of a shortcut."""
        rows, columns = self.ranges(x_shape[2:], shortcut and shortcut[2:])
        return x_shape[0], x_shape[1] // self.fold, len(rows), len(columns)


@lru_cache(4096)
def _ranges(geometry: Pool2dGeometry, image: Pair, size: Pair | None) -> tuple[Ranges, Ranges]:
    rows, columns = (_axis(geometry, axis, image[axis], None if size is None else size[axis]) for axis in range(2))
    return rows, columns


def _axis(geometry: Pool2dGeometry, axis: int, length: int, out: int | None) -> Ranges:
    if geometry.kind == 'nearest':
        out = out or length * geometry.window[axis]
        places = F.interpolate(torch.arange(length, dtype=torch.float32).view(1, 1, -1), size=out).flatten().long().tolist()
        return [(place, place + 1) for place in places]
    if geometry.size is not None and out is not None:
        return [(i * length // out, -(-(i + 1) * length // out)) for i in range(out)]
    window, stride, padding = geometry.window[axis], geometry.stride[axis], geometry.padding[axis]
    count = (length + 2 * padding - window + (stride - 1 if geometry.ceil else 0)) // stride + 1
    if geometry.ceil and (count - 1) * stride >= length + padding:
        count -= 1  # it would begin behind the map
    starts = [i * stride - padding for i in range(count)]
    return [(max(start, 0), min(start + window, length)) for start in starts]


def window_positions(image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                     dilation: Sequence[int] = (1, 1)) -> Pair:
    """Positions of a window along each axis; less than 1 where none fits."""
    height, width = ((i + 2 * p - d * (k - 1) - 1) // s + 1
                     for i, k, s, p, d in zip(image, kernel, stride, padding, dilation, strict=True))
    return height, width


def pair(name: str, value: IntOrPair, least: int) -> Pair:
    """(height, width). Raises ValueError with `name` for anything else than one or two numbers from `least` to 2**31 - 1."""
    both = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(both) != 2 or any(number < least or number >= STEPS_LIMIT for number in both):
        raise ValueError(f'{name} must be an int or a pair of ints, each at least {least} and below 2**31, got {list(both)}.')
    return both


def check_terms(terms: int) -> None:
    """Raises ValueError where float32 does not hold every sum."""
    if terms >= TERMS_LIMIT:
        raise ValueError(f'one output sums {terms} terms, the limit is 2**24 - 1: split the channels and add the results.')
