"""Signs of two whole runs: where those of a packed model first differ from the latent one's, and how near to the threshold."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn_kernels.layout import unpack_bits

from ..layers.base import expand_input
from .fused import fused_steps
from .fused.patterns.block import BlockStep
from .fused.steps import pack_step
from .packed import PackedConv2d, PackedLayer, PackedLinear

ROUNDINGS = 512  # of a whole network, in units in the last place of the largest value
MOST = 0.1  # no rounding is more, in units of the largest value


@dataclass
class Levels:
    """What one call of a binary layer reads.

    Attributes:
        name: of the layer.
        values: words ``[..., words]`` of signs, or levels.
        near: of signs, which of them lie within rounding of their threshold; of levels ``None``.
    """

    name: str
    values: Tensor
    near: Tensor | None = None


@dataclass
class Drift:
    """How many signs of a whole run are others, and how many of those in the first layer with any are not near."""

    signs: int = 0
    far: int = 0
    first: str = ''


def is_plain(layer: PackedLayer) -> bool:
    """Whether the layer reads one bit of each value."""
    return type(layer) in (PackedConv2d, PackedLinear) and layer.activation.bits == 1


def levels_of(name: str, layer: PackedLayer, x: Tensor, tolerance: float | None = None) -> Levels:
    """What ``layer`` reads of ``x``; ``tolerance`` in units of the largest value for :attr:`Levels.near`."""
    if not is_plain(layer) or x.numel() == 0:
        norm = getattr(layer, 'pre_norm', None)
        return Levels(name, layer.activation(expand_input(layer, x if norm is None else norm(x))))
    step, near = pack_step(layer), None
    if tolerance is not None:
        seen, threshold = step.compared(x).float(), 0 if step.threshold is None else step.threshold
        if step.is_conv and step.threshold is not None:
            threshold = threshold.view(-1, 1, 1)
        near = (seen - threshold).abs() <= tolerance * seen.abs().amax()
    return Levels(name, step(x), near)


@contextmanager
def read_levels(layers: dict[str, tuple[nn.Module, PackedLayer]], tolerance: float) -> Iterator[list[Levels]]:
    """What the latent layers read while the block runs, in order."""
    found: list[Levels] = []
    with ExitStack() as stack:
        for name, (one, other) in layers.items():
            if other.activation.bits < 32:
                stack.callback(one.register_forward_pre_hook(
                    lambda _, args, name=name, other=other: found.append(levels_of(name, other, args[0], tolerance))).remove)
        yield found


@contextmanager
def read_packed_levels(packed: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What the packed layers read while the block runs, fused or not, by name."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        fused = {name: step for name, step in fused_steps(packed) if isinstance(step, BlockStep)}
        for name, step in fused.items():
            stack.callback(step.register_forward_pre_hook(
                lambda _, args, name=name: found.setdefault(name, []).append(args[0].clone())).remove)
        for name, layer in packed.named_modules():
            if isinstance(layer, PackedLayer) and name not in fused and layer.activation.bits < 32:
                stack.callback(layer.register_forward_pre_hook(
                    lambda layer, args, name=name: found.setdefault(name, []).append(
                        levels_of(name, layer, args[0]).values)).remove)
        yield found


def drift_of(expected: list[Levels], found: dict[str, list[Tensor]], packed: nn.Module) -> Drift:
    """Compares both runs."""
    drift = Drift()
    calls = {name: iter(values) for name, values in found.items()}
    for levels in expected:
        values = next(calls.get(levels.name, iter(())), None)
        if values is None or values.shape != levels.values.shape:
            continue  # it runs as often as what the model finds
        layer = packed.get_submodule(levels.name)
        if levels.near is None:
            different = int((values != levels.values).sum())
        else:
            is_conv = isinstance(layer, PackedConv2d)
            flipped = unpack_bits(values ^ levels.values, levels.near.shape[1 if is_conv else -1], getattr(layer, 'groups', 1))
            flipped = flipped.permute(0, 3, 1, 2) if is_conv else flipped
            different = int(flipped.sum())
            if different and not drift.signs:
                drift.far = int((flipped.bool() & ~levels.near).sum())
        if different and not drift.signs:
            drift.first = levels.name
        drift.signs += different
    return drift


def tolerance_of(*dtypes: torch.dtype) -> float:
    """How far apart two values may be that only rounding has made different, in units of the largest."""
    return min(ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes), MOST)
