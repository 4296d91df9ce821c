"""What follows the backward pass of many small tensors, each rule in one call of the engine of `bnn_kernels.cpu`.

An operator of torch takes about a microsecond for each tensor of a list on a CPU, which is more than its numbers take where
layers are small. The rules are functions of :class:`Tensors`, lists that know where their tensors are.
"""

from array import array
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from .cpu import engine

PLAIN = {Tensor, nn.Parameter}


class Tensors:
    """Tensors whose numbers are updated together, always the same ones in the same order; where they are is looked at before
    each update, what they are where one has moved.

    Args:
        dtype: that the engine expects.

    Attributes:
        units, lengths: of each tensor, its filters (`[O, ...]`; vectors and numbers are one) and the numbers of one of them.
    """

    def __init__(self, dtype: torch.dtype = torch.float32):
        self.dtype, self.dense = dtype, False
        self.found: list[int] = []
        self.places = self.units = self.lengths = array('q')

    def update(self, tensors: Sequence[Tensor], moving: bool = False) -> bool:
        """Whether the engine can work on them: dense, of that dtype, in main memory, and there is an engine.

        Args:
            tensors: the list as it is now.
            moving: their memory is taken anew for each step, as that of gradients is.

        Example:
            >>> weights = [torch.full((2, 3), 5.0), torch.full((4,), -5.0)]
            >>> places = Tensors()
            >>> if places.update(weights):
            ...     clip_(places, 1.0)
            ... else:
            ...     torch._foreach_clamp_(weights, -1.0, 1.0)
        """
        if not PLAIN.issuperset(map(type, tensors)):  # shards and the like have no address
            return False
        found = [*map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)]
        if found != self.found:
            self.found, self.places, shapes = found, array('q', found), [tensor.shape for tensor in tensors]
            self.units = array('q', [shape[0] if len(shape) > 1 else 1 for shape in shapes])
            self.lengths = array('q', [prod(shape[1:]) if len(shape) > 1 else prod(shape) for shape in shapes])
            self.dense = available() and all(tensor.is_cpu and tensor.dtype == self.dtype for tensor in tensors) and (
                all(map(Tensor.is_contiguous, tensors)))
            return self.dense
        return self.dense and (not moving or all(map(Tensor.is_contiguous, tensors)))


def available() -> bool:
    try:
        engine.library()
    except RuntimeError:
        return False
    return True


def clip_(tensors: Tensors, limit: float) -> None:
    """Clip to `[-limit, limit]`."""
    _call('clip', tensors, limit=limit)


def count_flips_(tensors: Tensors, last: Tensors, shares: Tensors) -> None:
    """The share of each filter's signs that differ from those of the last call, and the signs of this one.

    Args:
        last: int8, the signs; 0 before the first call, of which nothing differs.
        shares: float32 `[O]` of each tensor `[O, ...]`.
    """
    _call('count_flips', tensors, last, shares)


def flip_(tensors: Tensors, gradients: Tensors, momenta: Tensors, gamma: float, threshold: float) -> None:
    """Bop: `m <- m + gamma (g - m)`, then `w <- -w` where `w m > threshold` (Helwegen et al. 2019, arXiv 1906.02107)."""
    _call('flip', tensors, gradients, momenta, gamma=gamma, threshold=threshold)


def clip_units_(tensors: Tensors, gradients: Tensors, ratio: float, eps: float) -> None:
    """Adaptive clipping of the gradients by filters (Brock et al. 2021, arXiv 2102.06171, eq. 3)."""
    _call('clip_units', tensors, gradients, ratio=ratio, eps=eps)


def _call(rule: str, *lists: Tensors, **numbers: float) -> None:
    first = lists[0]
    places = [part.buffer_info()[0] for part in (first.units, first.lengths, *(one.places for one in lists))]
    engine.call(f'bnn_{rule}', torch.get_num_threads(), len(first.units), *places, *numbers.values())
