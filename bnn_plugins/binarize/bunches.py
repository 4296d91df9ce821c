"""Many small tensors as few large ones: an operation costs the host the same for a hundred layers as for one."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

MOST = 1 << 24  # numbers in a bunch: what a copy of it takes stays small beside a model
Shapes = tuple[tuple[int, ...], ...]


def shapes(tensors: Sequence[Tensor]) -> Shapes:
    return tuple([tensor.shape for tensor in tensors])


def bunches(shapes: Shapes) -> Iterator[tuple[slice, Shapes]]:
    """Consecutive tensors of together at most ``MOST`` numbers, at least one each: where they are, and their shapes."""
    parts = _bunches(shapes)
    return ((part, shapes if len(parts) == 1 else shapes[part]) for part in parts)


@lru_cache
def _bunches(shapes: Shapes) -> list[slice]:
    starts: list[int] = []
    count = 0
    for index, shape in enumerate(shapes):
        size = math.prod(shape)
        if not count or count + size > MOST:
            starts.append(index)
            count = 0
        count += size
    return [slice(start, end) for start, end in pairwise([*starts, len(shapes)])]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of all tensors, ``[n]``; of a single one it may be a view."""
    return _flatten_dense_tensors(tensors)


class Units(NamedTuple):
    """The output units of tensors: each filter of ``[O, ...]``, the whole of vectors and numbers.

    Attributes:
        lengths: how many numbers belong to each unit.
        values: memory for a number of each unit, to be written before it is read.
        vectors: of ``values``, those of each tensor, ``[O]``.
        factors: the same, ``[O, 1, ...]``: shaped to multiply the tensor.
    """

    lengths: Tensor
    values: Tensor
    vectors: Sequence[Tensor]
    factors: Sequence[Tensor]

    def reduce(self, numbers: Tensor, how: str) -> Tensor:
        """``how`` (``'sum'``, ``'mean'``) of :func:`flat` of the tensors, or of other numbers in its order, over each unit."""
        return torch.segment_reduce(numbers, how, lengths=self.lengths)


@lru_cache
def units(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Units:
    """The units of tensors of these shapes, found once for them."""
    counts = [shape[0] if len(shape) > 1 else 1 for shape in shapes]
    sizes = [size // count for size, count in zip(map(math.prod, shapes), counts, strict=True)]
    lengths = torch.tensor(sizes, device=device).repeat_interleave(torch.tensor(counts, device=device))
    values = torch.empty(len(lengths), device=device, dtype=dtype)
    return Units(lengths, values, values.split(counts),
                 split_as(values, [shape[:1] * (len(shape) > 1) + (1,) * (len(shape) - 1) for shape in shapes]))


def split_as(numbers: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Views of ``[n]`` in these shapes, one behind the other."""
    parts = numbers.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


@lru_cache
def memory(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """``[n]`` and its views in these shapes: what is written to the one is copied from the others. Both are the same memory in
    the next call for as many numbers."""
    count = sum(map(math.prod, shapes))
    numbers = _memory(1 << count.bit_length(), device, dtype)[:count]
    return numbers, split_as(numbers, shapes)


@lru_cache
def _memory(count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, device=device, dtype=dtype)
