"""One forward pass seen layer by layer: multiply-accumulates, elementwise multiplies, values moved, the balance of signs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from ..layers import BinaryLayer, RPReLU
from ..layers.expand import input_copies

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
SLOPES = (nn.PReLU, RPReLU)
Layer = Any  # float, latent and packed layers have the same names of attributes, and no class in common


@dataclass
class LayerCounts:
    """Sums over all calls of one layer in one forward pass.

    Attributes:
        macs: multiply-accumulates of the batch.
        inputs: values that the layer reads; behind a drop-in tile, those of the sign.
        outputs: values that the layer writes.
        muls: elementwise multiplies: one per value of a norm and of a PReLU; of a binary layer, one per distinct value for its
            scale, where no norm behind it takes that over, and one for its gain.
        calls: how often the layer ran (a head shared by pyramid levels runs once per level).
        output_shape: of the last call.
        positive: how many inputs of a sign were +1.
        signs: how many inputs of a sign there were.
    """

    macs: int = 0
    inputs: int = 0
    outputs: int = 0
    muls: int = 0
    calls: int = 0
    output_shape: tuple[int, ...] = ()
    positive: int = 0
    signs: int = 0

    @property
    def sign_balance(self) -> float | None:
        """Share of +1 among the binarized inputs; ``None`` where there is no sign."""
        return self.positive / self.signs if self.signs else None


def macs_per_output(module: Layer) -> int:
    """Multiply-accumulates for one output value (one input value of a transposed convolution)."""
    if hasattr(module, 'in_features'):
        return getattr(module, 'fan_in', module.in_features)
    if hasattr(module, 'fan_in') and not module.transposed:
        return module.fan_in
    channels = module.out_channels if module.transposed else module.in_channels
    return channels // module.groups * math.prod(module.kernel_size)


def has_scale(layer: Layer) -> bool:
    """Whether a latent or packed layer multiplies its accumulators by a number per filter."""
    if layer.activation.step != 1 or layer.folded_scale is not None:
        return True
    return (layer.weight_binarizer(layer.filters)[1] if isinstance(layer, BinaryLayer) else layer.weight_scale) is not None


def watched(module: nn.Module, hook: Callable[[nn.Module, tuple, Any], None]) -> RemovableHandle:
    """A forward hook whose inputs are all of a call, those by keyword behind the others."""
    return module.register_forward_hook(lambda module, args, kwargs, output: hook(module, (*args, *kwargs.values()), output),
                                        with_kwargs=True)


@torch.no_grad()
def count_layers(model: nn.Module, run: Callable[[], object], is_layer: Callable[[nn.Module], bool]) -> dict[str, LayerCounts]:
    """Call ``run()`` and record what happens in the layers of ``model`` that ``is_layer`` accepts, by name."""
    counts, handles = {}, []

    def after(name: str, module: Layer):
        def hook(_, inputs: tuple[Tensor, ...], output: Any) -> None:
            record = counts.setdefault(name, LayerCounts())
            counted = inputs[0] if getattr(module, 'transposed', False) else output
            # The outputs of an expanded layer are copies of fewer ones.
            distinct = counted.numel() // getattr(module, 'replicas', 1)
            record.macs += distinct * macs_per_output(module)
            record.inputs += inputs[0].numel() * (input_copies(module) if hasattr(module, 'expand') else 1)
            record.outputs += output.numel()
            if hasattr(module, 'activation'):
                record.muls += distinct * ((module.gain is not None) + has_scale(module))
                output.scale_count = record, distinct * has_scale(module)  # the norm that reads this tensor takes it back
            record.calls += 1
            record.output_shape = tuple(output.shape)
        return hook

    def after_attention(name: str, module: Layer):
        def hook(_, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            query, key = inputs[:2]
            record = counts.setdefault(name, LayerCounts())
            products = query.numel() * key.shape[1]  # of the scores, and of each plane of probabilities
            record.macs += products * (1 + max(module.probability.planes, 1))
            record.inputs += query.numel() + key.numel() * (1 if module.real_values else 2)
            record.outputs += output.numel()
            steps = sum(not isinstance(step, float) or step != 1 for step in module.probability.steps())
            record.muls += output.numel() * (steps if module.probability.planes else 0)
            record.calls += 1
            record.output_shape = tuple(output.shape)
        return hook

    def elementwise(name: str, is_norm: bool):
        def hook(_, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            counts.setdefault(name, LayerCounts()).muls += output.numel()
            record, count = getattr(inputs[0], 'scale_count', (None, 0))
            if is_norm and record is not None:
                record.muls -= count
        return hook

    def signs(name: str):
        def hook(_, inputs: tuple[Tensor, ...], levels: Tensor) -> None:
            record = counts.setdefault(name, LayerCounts())
            record.positive += int((levels > 0).sum())
            record.signs += levels.numel()
        return hook

    for name, module in model.named_modules():
        if isinstance(module, NORMS + SLOPES):
            handles.append(watched(module, elementwise(name, isinstance(module, NORMS))))
        if is_layer(module):
            hook = after_attention if hasattr(module, 'probability') else after
            handles.append(watched(module, hook(name, module)))
            if isinstance(module, BinaryLayer) and module.activation.bits == 1:
                handles.append(module.activation.register_forward_hook(signs(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return counts
