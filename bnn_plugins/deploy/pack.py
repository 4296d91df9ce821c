"""``pack_``: from latent layers to packed ones, in place."""

from collections.abc import Callable

from torch import nn

from ..layers import Packable
from .packed import PackedModule

# Called with each model before it is packed: a host whose models say whether they are quantized notes it there, or refuses.
PACKED: list[Callable[[nn.Module], None]] = []


def pack_(model: nn.Module) -> nn.Module:
    """Replace the latents of every binary layer by bits, in place, and switch to evaluation mode; returns ``model``.

    The packed model computes what the latent model computes in evaluation mode: the accumulators are the same integers and
    the epilogue is written in the same order.

    Raises:
        ValueError: when the model has no binary layer, or is packed already.

    Example:
        >>> model = nn.Sequential(BinaryConv2d(16, 32, 3, method='xnor'), nn.BatchNorm2d(32)).eval()
        >>> x = torch.randn(1, 16, 8, 8)
        >>> latent = model(x)
        >>> torch.equal(pack_(model)(x), latent)
        True
    """
    latent = [module for module in model.modules() if isinstance(module, Packable)]
    if not latent:
        packed = any(isinstance(module, PackedModule) for module in model.modules())
        raise ValueError(f'this {type(model).__name__} is packed already' if packed else
                         f'this {type(model).__name__} has no binary layer: binarize_ it first')
    for note in PACKED:
        note(model)
    for module in latent:
        module.become_packed_()
    model.eval()
    return model  # eval() of mmdet's ResNet returns nothing
