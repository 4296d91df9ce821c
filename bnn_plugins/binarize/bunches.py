"""Many small tensors as few large ones: an operation costs the host the same for a hundred layers as for one."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

MOST = 1 << 24  # numbers in a bunch: what a copy of it takes stays small beside a model


def bunches(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Consecutive tensors of together at most ``MOST`` numbers, at least one each."""
    start, count = 0, 0
    for index, tensor in enumerate(tensors):
        if index > start and count + tensor.numel() > MOST:
            yield slice(start, index)
            start, count = index, 0
        count += tensor.numel()
    if tensors:
        yield slice(start, len(tensors))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of all tensors, ``[n]``."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@lru_cache
def unit_lengths(shapes: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """How many numbers belong to each output unit: to each filter of ``[O, ...]``, to the whole of vectors and numbers."""
    lengths = []
    for shape in shapes:
        units = shape[0] if len(shape) > 1 else 1
        lengths += [torch.Size(shape).numel() // units] * units
    return torch.tensor(lengths, device=device)


def per_unit(numbers: Tensor, reduce: str, tensors: Sequence[Tensor]) -> Tensor:
    """``reduce`` (``'sum'``, ``'mean'``) of ``flat(tensors)``, or of other numbers in its order, over each output unit."""
    return torch.segment_reduce(numbers, reduce, lengths=unit_lengths(tuple(t.shape for t in tensors), numbers.device))
