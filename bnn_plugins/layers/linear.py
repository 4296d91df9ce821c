"""The binary linear layer."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..binarize.lookup import checked_arguments
from .base import BinaryLayer, exact, summation
from .expand import Expansion, checked_expand


def multiply_levels(linear, levels: Tensor, weight_levels: Tensor) -> Tensor:
    """The product of levels ``[..., in_features]`` and ``[out_features, in_features]``, ``[..., out_features]``."""
    with summation(linear, levels):
        acc = F.linear(levels, weight_levels.to(levels.dtype))
    return exact(linear, acc)


class BinaryLinear(BinaryLayer, nn.Linear):
    r"""A linear layer of quantized activations and weights; arguments of ``nn.Linear``, ``method`` and ``expand``.

    .. math:: y = \alpha \cdot s \cdot Q_w(W) Q_a(x) + b

    as in :class:`BinaryConv2d`. Thresholds of the method are per input feature. ``expand`` takes no ``groups`` here.

    Shape: ``[..., in_features]`` -> ``[..., out_features]``.

    Raises:
        ValueError: for an unknown method or option, features that ``expand`` does not divide, and, at the first training
            step, when all inputs have the same sign.
    """

    channel_dim = -1

    @checked_arguments
    def __init__(self, in_features, out_features, bias=True, device=None, dtype=None, *, method: str | dict = 'reactnet',
                 expand: dict | Expansion | None = None):
        expand = checked_expand(expand)
        if expand is not None and expand.groups > 1:
            raise ValueError(f'a linear layer has no groups: expand takes groups=1 here, but got {expand.groups}')
        inputs, filters = (in_features, out_features) if expand is None else expand.split(in_features, out_features)
        super().__init__(inputs, filters, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._init_binary(in_features, method, expand)
        self.to(device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        acc, scale = self._product(input, self.weight)
        return self._epilogue(input, acc, scale, self.bias)

    _multiply = multiply_levels

    def extra_repr(self) -> str:
        expand = '' if self.expand is None else f', {self.expand.text()}'
        return f'{super().extra_repr()}, method={self.method!r}{expand}'
