"""What the parameters of a binary model are to an optimizer."""

from torch import nn

from .activations import RPReLU
from .attention import BinaryAttention
from .base import BinaryLayer
from .tokens import LayerScale


def parameter_kinds(model: nn.Module) -> dict[int, str]:
    """``id(parameter) -> 'latent' | 'threshold'`` for those that take no weight decay; all others are left out.

    The sign of a latent weight does not depend on its size, so decay only shortens the way to the next flip. ``'threshold'``
    are thresholds, scales and gains of binary layers and attention, and what RPReLU, PReLU and LayerScale learn: offsets and
    factors, no weights.
    """
    kinds = {}
    for module in model.modules():
        if isinstance(module, BinaryLayer):
            kinds[id(module.weight)] = 'latent'
            kinds.update((id(p), 'threshold') for name, p in module.named_parameters() if name not in ('weight', 'bias'))
        elif isinstance(module, RPReLU | nn.PReLU | BinaryAttention | LayerScale):
            kinds.update((id(p), 'threshold') for p in module.parameters())
    return kinds
