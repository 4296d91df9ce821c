"""Operators on real-valued maps between the layers of a network: windows, planes, maps side by side, all in plain torch.

In eager code a backend runs them; code that is compiled or traced sees the operations of torch that they stand for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks
from .epilogue import Epilogue, stream_of, words_of
from .geometry import Pool2dGeometry
from .layout import pack_bits
from .prepared_op import PreparedOp, shared_op


def pool2d(x: Tensor, geometry: Pool2dGeometry, shortcut: Tensor | None = None) -> Tensor:
    """Pools, enlarges or folds a map, and adds another.

    Args:
        x: float32, float16 or bfloat16 `[N, fold * C, H, W]`.
        shortcut: `[N, C, H', W']` of the same dtype.

    Returns:
        `[N, C, H', W']` of the dtype of `x` in channels-last memory. Sums are float32: group by group, row by row, times one
        over their number, plus the shortcut, rounded once.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, an unknown kind, tensors on different devices.

    Example:
        >>> pool2d(torch.arange(4.0).view(1, 4, 1, 1), Pool2dGeometry('mean', fold=2)).flatten()
        tensor([1., 2.])
    """
    if PreparedOp.direct(x):
        return shared_op('pool2d', ('geometry', geometry))(x=x, shortcut=shortcut)
    checks.pool2d(x, geometry, shortcut)
    return windows_of(x, geometry, shortcut)


def to_planes(x: Tensor) -> Tensor:
    """A map in contiguous memory: what `x.contiguous()` gives.

    Args:
        x: float32, float16 or bfloat16 `[N, C, H, W]`.

    Returns:
        `[N, C, H, W]` of the same dtype.

    Raises:
        ValueError: another dtype or number of dimensions.

    Example:
        >>> to_planes(torch.randn(1, 4, 5, 5).contiguous(memory_format=torch.channels_last)).is_contiguous()
        True
    """
    return shared_op('to_planes')(x=x) if PreparedOp.direct(x) else planes_of(x)


def concat2d(maps: Sequence[Tensor], threshold: Tensor | None = None, groups: int = 1, pack: bool = False,
             keep: bool = True) -> tuple[Tensor, Tensor]:
    """Maps side by side in one, and the signs of all their channels.

    Args:
        maps: at most 8 of the same dtype, float32, float16 or bfloat16, `[N, C_i, H, W]`.
        threshold: float32, one for each channel of the result; None: 0.
        groups: of the words, as in `pack_activations`.
        pack, keep: whether the words, and the stream, are wanted.

    Returns:
        int32 words `[N, H, W, groups * words]` and the stream, `torch.cat(maps, 1)` in channels-last memory; `[0]` for what is
        not wanted.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, too many maps, tensors on different devices.

    Example:
        >>> words, stream = concat2d([torch.ones(1, 24, 5, 5), -torch.ones(1, 8, 5, 5)], pack=True)
        >>> stream.shape, hex(words[0, 0, 0, 0])
        (torch.Size([1, 32, 5, 5]), '0xffffff')
    """
    inputs = named(maps)
    if PreparedOp.direct(maps[0]):
        return shared_op('concat2d', ('groups', groups), ('pack', pack), ('keep', keep))(threshold=threshold, **inputs)
    checks.concat2d(threshold, groups, pack, keep, **inputs)
    return maps_side_by_side(threshold, groups, pack, keep, **inputs)


def weighted_sum2d(maps: Sequence[Tensor], epilogue: Epilogue, weight: Tensor | None = None,
                   spread: Sequence[int] | None = None, gate: Tensor | None = None, gate_spread: int = 1,
                   dtype: torch.dtype = torch.float32, pack: bool = False, keep: bool = True) -> tuple[Tensor, Tensor]:
    """Maps added, each times a vector, and what follows: affine, non-linearity, signs; see `epilogue.py`.

    Args:
        maps: at most 8 of the same dtype, float32, float16 or bfloat16: the first `[N, C, H, W]`, others `[N, C, ceil(H / s),
            ceil(W / s)]`, each pixel of which stands for `s` rows and columns.
        epilogue: of the sum, C channels. Without a shortcut.
        weight: float32 `[maps, C]`; None: 1.
        spread: `s` of each map; None: 1.
        gate, gate_spread: a map that the first one is multiplied with, and its `s`.
        dtype: of the stream. pack, keep: whether the words, and the stream, are wanted.

    Returns:
        int32 words `[N, H, W, out_groups * words]` and the stream `[N, C, H, W]` in channels-last memory; `[0]` for what is
        not wanted. Products and sums are float32, each rounded by itself, in the order of the maps.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, too many maps, tensors on different devices.

    Example:
        >>> one, two = torch.ones(1, 4, 6, 6), torch.full((1, 4, 1, 1), 2.0)
        >>> _, stream = weighted_sum2d([one, two], Epilogue(torch.ones(4), torch.ones(4)), spread=(1, 6))
        >>> stream.unique()
        tensor([4.])
    """
    spread = (*(spread or [1] * len(maps)), gate_spread)
    call: dict[str, Any] = dict(epilogue=epilogue, spread=spread, weight=weight, dtype=dtype, pack=pack, keep=keep)
    if PreparedOp.direct(maps[0]):
        return PreparedOp('weighted_sum2d', **call)(gate=gate, **named(maps))
    call |= dict(gate=gate, **named(maps))
    checks.weighted_sum2d(**call)
    return weighted_sum_of(**call)


def named(maps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Maps by the names that `checks.concat2d` gives them."""
    return {f'x{number or ""}': x for number, x in enumerate(maps)}


def maps_side_by_side(threshold: Tensor | None, groups: int, pack: bool, keep: bool, **maps: Tensor) -> tuple[Tensor, Tensor]:
    """`concat2d` in plain torch."""
    stream = torch.cat(list(maps.values()), 1)
    words = pack_bits(stream.permute(0, 2, 3, 1) >= (0 if threshold is None else threshold), groups) if pack else \
        stream.new_empty(0, dtype=torch.int32)
    return words, stream.contiguous(memory_format=torch.channels_last) if keep else stream.new_empty(0)


def weighted_sum_of(epilogue: Epilogue, spread: tuple[int, ...], weight: Tensor | None, dtype: torch.dtype, pack: bool,
                    keep: bool, x: Tensor, gate: Tensor | None = None, **others: Tensor) -> tuple[Tensor, Tensor]:
    """`weighted_sum2d` in plain torch."""
    *spreads, gate_spread = spread
    v = x.float() if gate is None else x.float() * spread_over(gate, gate_spread, x.shape[2:]).float()
    v = v if weight is None else v * weight[0].view(-1, 1, 1)
    for number, (other, size) in enumerate(zip(others.values(), spreads[1:], strict=True), 1):
        term = spread_over(other, size, x.shape[2:]).float()
        v = v + (term if weight is None else term * weight[number].view(-1, 1, 1))
    stream = stream_of(v, epilogue, None, dtype)
    words = words_of(stream, epilogue) if pack else stream.new_empty(0, dtype=torch.int32)
    return words, stream.contiguous(memory_format=torch.channels_last) if keep else stream.new_empty(0)


def spread_over(x: Tensor, size: int, sides: Sequence[int]) -> Tensor:
    """Every pixel over `size` rows and columns of a map of these sides."""
    if size == 1:
        return x
    rows, columns = (torch.arange(side, device=x.device) // size for side in sides)
    return x[:, :, rows][:, :, :, columns]


def mean_of_neighbours(x: Tensor, fold: int) -> Tensor:
    """`[N, fold * C, H, W]` to `[N, C, H, W]` of the same dtype, in float32: sums of two, then of two of these, ..."""
    total = x.float()
    for _ in range(fold.bit_length() - 1):
        total = total[:, 0::2] + total[:, 1::2]
    return (total * (1 / fold)).to(x.dtype)


def planes_of(x: Tensor) -> Tensor:
    """`to_planes` in plain torch."""
    return x.contiguous()


def windows_of(x: Tensor, geometry: Pool2dGeometry, shortcut: Tensor | None) -> Tensor:
    """`pool2d` in plain torch."""
    rows, columns = (torch.tensor(axis, device=x.device) for axis in geometry.ranges(
        x.shape[2:], None if shortcut is None else shortcut.shape[2:]))
    largest, nothing = geometry.kind == 'max', -torch.inf if geometry.kind == 'max' else 0.0
    groups = x.float().unflatten(1, (geometry.fold, -1))
    y = groups.new_full((x.shape[0], groups.shape[2], len(rows), len(columns)), nothing)
    for group in range(geometry.fold):
        for i in range(int((rows[:, 1] - rows[:, 0]).max())):
            for j in range(int((columns[:, 1] - columns[:, 0]).max())):
                inside = ((rows[:, 0] + i < rows[:, 1]).view(-1, 1) & (columns[:, 0] + j < columns[:, 1]))
                at = (rows[:, 0] + i).clamp(max=x.shape[2] - 1), (columns[:, 0] + j).clamp(max=x.shape[3] - 1)
                term = torch.where(inside, groups[:, group][:, :, at[0]][:, :, :, at[1]], nothing)
                y = torch.maximum(y, term) if largest else y + term
    if not largest:
        sizes = [axis[:, 1] - axis[:, 0] for axis in (rows, columns)]
        y = y * (1 / (geometry.fold * sizes[0].view(-1, 1) * sizes[1]).float())
    y = y if shortcut is None else y + shortcut.float()
    return y.to(x.dtype).contiguous(memory_format=torch.channels_last)
