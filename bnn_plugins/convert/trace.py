"""One forward pass seen layer by layer: multiply-accumulates and the balance of signs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import BinaryLayer


@dataclass
class LayerTrace:
    """Sums over all calls of one layer in one forward pass.

    Attributes:
        macs: multiply-accumulates of the batch.
        calls: how often the layer ran (a head shared by pyramid levels runs once per level).
        output_shape: of the last call.
        positive, signs: how many inputs of a sign were +1, and how many there were.
    """

    macs: int = 0
    calls: int = 0
    output_shape: tuple[int, ...] = ()
    positive: int = 0
    signs: int = 0

    @property
    def sign_balance(self) -> float | None:
        """Share of +1 among the binarized inputs; ``None`` where there is no sign."""
        return self.positive / self.signs if self.signs else None


def macs_per_output(module: nn.Module) -> int:
    """Multiply-accumulates for one output value (one input value of a transposed convolution)."""
    if hasattr(module, 'fan_in'):
        return module.fan_in
    if hasattr(module, 'in_features'):
        return module.in_features
    kernel_height, kernel_width = module.kernel_size
    channels = module.out_channels if isinstance(module, nn.ConvTranspose2d) else module.in_channels
    return channels // module.groups * kernel_height * kernel_width


@torch.no_grad()
def trace(model: nn.Module, run: Callable[[], object], is_layer: Callable[[nn.Module], bool]) -> dict[str, LayerTrace]:
    """Call ``run()`` and record what happens in the layers of ``model`` that ``is_layer`` accepts, by name."""
    traces, handles = {}, []

    def after(name: str, module: nn.Module):
        def hook(_, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            record = traces.setdefault(name, LayerTrace())
            counted = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
            # The outputs of an expanded layer are copies of fewer ones.
            record.macs += counted.numel() // getattr(module, 'replicas', 1) * macs_per_output(module)
            record.calls += 1
            record.output_shape = tuple(output.shape)
        return hook

    def signs(name: str):
        def hook(_, inputs: tuple[Tensor, ...], levels: Tensor) -> None:
            record = traces.setdefault(name, LayerTrace())
            record.positive += int((levels > 0).sum())
            record.signs += levels.numel()
        return hook

    for name, module in model.named_modules():
        if is_layer(module):
            handles.append(module.register_forward_hook(after(name, module)))
            if isinstance(module, BinaryLayer) and module.activation.bits == 1:
                handles.append(module.activation.register_forward_hook(signs(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return traces
