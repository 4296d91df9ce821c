r"""The products of recurrent cells: from inputs to the pre-activations of all gates.

A product is a binary linear layer or a binary convolution whose outputs are the gates, one group of units after the other, and
a norm behind it:

- ``'static'``: :math:`g_j\,S_j / \sqrt{2n}` with the sum of signs :math:`S`, its number of terms :math:`n` and a learned
  weight :math:`g`: where it starts at 1, unit variance for the sum of two products; no statistics, the same for every batch.
- ``'ln'``: layer norm over the units of each gate (and over the positions of a map), with a weight, without a bias.
- ``'none'``: only the scale of the method. A mean magnitude of the weights is left out in front of the others.

``expand`` (expanding-and-shrinking) has ``tau`` times fewer, ``tau`` times deeper filters; each gate is tiled by itself, and
every copy of a unit has a norm weight of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..binarize import BinaryInput, FloatActivation, SignActivation, SignWeight, unknown
from ..binarize.activations import per_channel
from .conv import BinaryConv2d
from .expand import Expansion
from .linear import BinaryLinear

NORMS = ('static', 'ln', 'none')


class StaticScale(nn.Module):
    """``x * weight / sqrt(2 * terms)`` per channel."""

    def __init__(self, channels: int, terms: int, channel_dim: int):
        super().__init__()
        self.unit, self.channel_dim = (2 * terms) ** -0.5, channel_dim
        self.weight = nn.Parameter(torch.ones(channels))

    def factor(self) -> Tensor:
        return self.weight * self.unit

    def forward(self, x: Tensor) -> Tensor:
        return x * per_channel(self.factor(), x.ndim, self.channel_dim)


class GateNorm(nn.Module):
    """Layer norm of each gate with a weight per channel: ``[N, gates * H, ...]``, or ``[..., gates * H]``."""

    def __init__(self, gates: int, channels: int, channel_dim: int):
        super().__init__()
        self.gates, self.channel_dim = gates, channel_dim
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2) if self.channel_dim == -1 else x
        return F.group_norm(rows, self.gates, self.weight).view_as(x)


class GateProduct(nn.Module):
    """What the two products share; lists no weights of its own.

    Attributes:
        gates (int): how many.
        norm_name (str): see :data:`NORMS`.
        norm_init (float): the initial weight of the norm.
    """

    def _init_gates(self, gates: int, norm: str, norm_init: float, binary_input: bool, real_input: bool) -> None:
        if norm not in NORMS:
            raise ValueError(unknown('norm', norm, NORMS))
        self.gates, self.norm_name, self.norm_init = gates, norm, norm_init
        if real_input:
            self.activation = FloatActivation()
        elif binary_input and self.activation.bits < 32:
            self.activation = BinaryInput()
        if self.activation.bits == 32 and self.w_bits == 32:
            raise ValueError('real inputs and real weights leave nothing binary: this is nn.LSTM')
        self._sign_checked = self._sign_checked or not isinstance(self.activation, SignActivation)
        channels = len(self.weight) * self.replicas
        if norm != 'none' and type(self.weight_binarizer) is SignWeight:
            self.weight_binarizer.scale = 'none'
        if norm == 'none':
            self.norm = nn.Identity()
        elif norm == 'ln':
            self.norm = GateNorm(gates, channels, self.channel_dim)
        else:
            self.norm = StaticScale(channels, self.fan_in, self.channel_dim)
        self.draw_(self.fan_in ** -0.5)

    @torch.no_grad()
    def draw_(self, bound: float) -> None:
        """New weights, uniform within ``bound``, and norm weights; static ones begin by undoing the method's scale."""
        self.weight.uniform_(-bound, bound)
        if self.norm_name != 'none':
            scale = self.weight_binarizer(self.weight)[1] if self.norm_name == 'static' else None
            self.norm.weight.fill_(self.norm_init / (1.0 if scale is None or scale.is_meta else float(scale.mean())))

    def binarized(self) -> tuple[Tensor, Tensor | None]:
        """Levels and scale of the weights."""
        return self.weight_binarizer(self.weight)

    def through_norm(self, norm: nn.Module):
        raise ValueError(f'{type(self).__name__}: the gates of a recurrent cell have a norm of their own, no other is folded')

    def signature_suffix(self) -> str:
        inputs = {FloatActivation: ' real input', BinaryInput: ' binary input'}.get(type(self.activation), '')
        return f' gates {self.gates} norm {self.norm_name}{inputs}'


def pre_activations(product, out: Tensor) -> Tensor:
    """The outputs of a latent or packed product, gate by gate, behind its norm."""
    dim, copies = product.channel_dim, product.replicas
    if copies > 1:  # tiled are all gates at once
        out = out.unflatten(dim, (copies, product.gates, -1))
        out = out.transpose(-3, -2).flatten(-3) if dim == -1 else out.transpose(1, 2).flatten(1, 3)
    return product.norm(out)


class GateLinear(GateProduct, BinaryLinear, nn.Linear):
    """``[..., in_features]`` -> pre-activations ``[..., gates * units]``.

    Args:
        norm_init: the initial weight of the norm.
        binary_input: the input is -1/+1 already and is taken as it is: an estimator could stop its gradient there.
        real_input: the input stays real, only the weights are binary.
    """

    def __init__(self, in_features: int, units: int, gates: int = 4, method: str | dict = 'reactnet', norm: str = 'static',
                 norm_init: float = 1.0, binary_input: bool = False, real_input: bool = False,
                 expand: dict | Expansion | None = None, device=None, dtype=None):
        super().__init__(in_features, gates * units, False, method=method, expand=expand)
        self._init_gates(gates, norm, norm_init, binary_input, real_input)
        self.to(device=device, dtype=dtype)

    def forward(self, input: Tensor, binarized: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """``binarized``: what :meth:`binarized` gave, where one sequence uses the weights in many calls."""
        weight_levels, scale = binarized or self.binarized()
        acc = self._accumulate(input, weight_levels)
        return pre_activations(self, self._epilogue(input, acc, scale, None))


class GateConv2d(GateProduct, BinaryConv2d, nn.Conv2d):
    """``[N, in_channels, H, W]`` -> pre-activations ``[N, gates * units, H, W]``, 'same' padding. Arguments as above."""

    def __init__(self, in_channels: int, units: int, kernel_size: int, gates: int = 4, method: str | dict = 'reactnet',
                 norm: str = 'static', norm_init: float = 1.0, binary_input: bool = False, real_input: bool = False,
                 expand: dict | Expansion | None = None, pad_value: int = 0, device=None, dtype=None):
        super().__init__(in_channels, gates * units, kernel_size, 1, kernel_size // 2, bias=False, method=method,
                         pad_value=pad_value, expand=expand)
        self._init_gates(gates, norm, norm_init, binary_input, real_input)
        self.to(device=device, dtype=dtype)

    def forward(self, input: Tensor, binarized: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        weight_levels, scale = binarized or self.binarized()
        acc = self._accumulate(input, weight_levels)
        return pre_activations(self, self._epilogue(input, acc, scale, None))
