r"""Expanding-and-shrinking: more levels per output, fewer distinct maps, the same number of weights and of operations.

A base layer ``C_in -> C_out`` has ``C_out`` filters of depth ``C_in``. Expanded by ``tau`` and ``g`` groups, it lives in a
network whose streams are ``tau * g`` times wider, and has ``C_out / tau`` filters of depth ``C_in * tau`` in ``g`` groups; its
output is *tiled* ``tau**2 * g`` times to the wide width again:

.. math:: z_j = y_{j \bmod C_{out}/\tau}, \qquad j < \tau g\,C_{out}

Norm, bias, threshold and non-linearity come after the tile and have parameters of their own for every copy, so one map is
seen at several thresholds. Weights and multiply-accumulates stay those of the base layer; norms and activations are
``tau * g`` times wider. Sources: Shi et al. 2022 (RepBNN), arXiv 2207.09049; Shi et al. 2025 (ES-BNN), arXiv 2503.23709.
"""

from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor, nn

from ..binarize.activations import per_channel
from ..binarize.lookup import check_keys, checked_arguments, unknown

__all__ = ['ExpandedConv2d', 'Expansion', 'FirstCopy', 'SqueezeExcite', 'Tile', 'expanded_width', 'spread_copies_', 'tile']

STYLES = ('es', 'rep', 'drop_in')


@dataclass(frozen=True)
class Expansion:
    """``expand=dict(tau=2, groups=1, style='es')`` of layers and models.

    Attributes:
        tau: how many times deeper, and fewer, the filters are.
        groups: of the binary convolution; the streams are ``tau * groups`` times wider than the base network's.
        style: ``'es'`` (ES-BNN) and ``'rep'`` (RepTran) differ in the stem and the head of a network only: ES tiles the stem
            before its norm and gives the classifier the first copy, Rep tiles after the norm and gives it all copies.
            ``'drop_in'`` keeps the outer widths of the layer: the layer itself tiles its input (with a learned threshold for
            each copy) and its output; this is what fits into a network that is not widened.
        spread: copies start with offsets spread evenly over ``[-spread, spread]`` instead of as equals: thresholds of the
            layers that have some; native models do the same to the biases of their norms.
    """

    tau: int = 1
    groups: int = 1
    style: str = 'es'
    spread: float = 0.0

    def __post_init__(self):
        for name in ('tau', 'groups'):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f'expand: {name} must be an integer of at least 1, but got {value!r}')
        if self.style not in STYLES:
            raise ValueError(unknown('style of expand', self.style, STYLES))

    @classmethod
    def of(cls, spec: 'dict | Expansion | None') -> 'Expansion | None':
        """From ``expand=``: ``None`` where nothing is expanded (``tau = groups = 1``), so that this is the base layer.

        Raises:
            ValueError: for an unknown key (the nearest known one is named) or an impossible value.
        """
        if spec is None:
            return None
        if not isinstance(spec, cls):
            if not isinstance(spec, dict):
                raise ValueError(f'expand must be None or dict(tau=2, ...), but got {spec!r}')
            check_keys('key of expand', spec, [f.name for f in fields(cls)])
            spec = cls(**spec)
        return spec if spec.copies > 1 else None

    @property
    def copies(self) -> int:
        """Factor of the width of all streams: how many wide channels stand for one channel of the base network."""
        return self.tau * self.groups

    @property
    def drop_in(self) -> bool:
        return self.style == 'drop_in'

    @property
    def replicas(self) -> int:
        """How often the output maps of a layer are tiled."""
        return self.tau if self.drop_in else self.tau**2 * self.groups

    def split(self, inputs: int, outputs: int) -> tuple[int, int]:
        """``(channels that the filters see, number of filters)`` of a layer with these outer widths.

        Raises:
            ValueError: where the widths cannot be divided.
        """
        if outputs % (self.replicas * self.groups) or (inputs % self.groups and not self.drop_in):
            base = 'the output width' if self.drop_in else 'the width of the base network'
            raise ValueError(f'expand(tau={self.tau}, groups={self.groups}, style={self.style!r}) does not divide '
                             f'{inputs} -> {outputs} channels: {base} must be divisible by tau * groups = {self.copies}'
                             + ('' if self.drop_in else f', and the layer takes and gives the {self.copies} times wider one'))
        return inputs * self.copies if self.drop_in else inputs, outputs // self.replicas

    def text(self) -> str:
        """What the arithmetic of a layer depends on, for its signature."""
        return f'expand tau {self.tau} groups {self.groups}{" drop_in" if self.drop_in else ""}'

    def to_dict(self) -> dict:
        return asdict(self)


def expanded_width(channels: int, expand: dict | Expansion | None) -> int:
    """The width of a stream of the expanded network where the base network has ``channels``: ``tau * groups`` times more."""
    expand = Expansion.of(expand)
    return channels if expand is None or expand.drop_in else channels * expand.copies


def tile(x: Tensor, times: int, channel_dim: int = 1) -> Tensor:
    """``times`` copies of all channels, one whole set behind the other (channel ``j`` is channel ``j mod C``).

    The gradient is the sum over the copies. The memory format is kept.
    """
    return x if times == 1 else torch.cat([x] * times, channel_dim)


def mean_over(x: Tensor, dim: int, size: int) -> Tensor:
    """``x.mean(dim)`` over few, ``size`` of them: several times faster on a CPU, and in the memory format of ``x``."""
    total = x.select(dim, 0)
    for i in range(1, size):  # torch.fx follows this; what unbind returns it cannot take apart
        total = total + x.select(dim, i)
    return total / size


class Tile(nn.Module):
    """:func:`tile` as a layer. ``[N, C, ...]`` -> ``[N, times * C, ...]``."""

    def __init__(self, times: int, channel_dim: int = 1):
        super().__init__()
        self.times, self.channel_dim = times, channel_dim

    def forward(self, x: Tensor) -> Tensor:
        return tile(x, self.times, self.channel_dim)

    def extra_repr(self) -> str:
        return f'times={self.times}'


class FirstCopy(nn.Module):
    """The first ``1 / times`` of the channels: the head of ES-BNN. ``[N, C, ...]`` -> ``[N, C / times, ...]``."""

    def __init__(self, times: int):
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :x.shape[1] // self.times]

    def extra_repr(self) -> str:
        return f'times={self.times}'


@torch.no_grad()
def spread_copies_(vector: Tensor, copies: int, spread: float) -> Tensor:
    """Add to each copy's part of ``[copies * C]`` its own offset, evenly spaced over ``[-spread, spread]``, in place."""
    if copies > 1 and spread:
        offsets = torch.linspace(-spread, spread, copies, dtype=vector.dtype, device=vector.device)
        vector.view(copies, -1).add_(offsets[:, None])
    return vector


class ExpandedConv2d(nn.Conv2d):
    """A *real* convolution of an expanded network: weights and FLOPs of the base layer between wide streams.

    Args:
        in_channels, out_channels: the wide widths, ``expanded_width`` of the base network's.
        expand: see :class:`Expansion`; ``None`` gives ``nn.Conv2d``. The rest as in ``nn.Conv2d``.

    Shape: ``[N, in_channels, H, W]`` -> ``[N, out_channels, H', W']``.

    Raises:
        ValueError: for widths that cannot be divided, and for ``groups`` together with ``expand``.
    """

    @checked_arguments
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, *, expand: dict | Expansion | None = None):
        expand = checked_expand(expand, groups)
        inputs, filters = (in_channels, out_channels) if expand is None else expand.split(in_channels, out_channels)
        super().__init__(inputs, filters, kernel_size, stride, padding, dilation, groups if expand is None else expand.groups,
                         bias, padding_mode, device, dtype)
        self.in_channels, self.out_channels, self.expand = in_channels, out_channels, expand
        self.fan_in = self.weight[0].numel()
        widen_bias_(self)

    @property
    def replicas(self) -> int:
        return 1 if self.expand is None else self.expand.replicas

    def forward(self, input: Tensor) -> Tensor:
        if self.expand is None:
            return super().forward(input)
        if self.expand.drop_in:
            input = tile(input, self.expand.copies)
        out = tile(self._conv_forward(input, self.weight, None), self.replicas)
        return out if self.bias is None else out + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return super().extra_repr() + ('' if self.expand is None else f', {self.expand.text()}')


class SqueezeExcite(nn.Module):
    """Channel attention ``x -> gate(conv(relu(conv(mean(x)))))`` in ``[0, 1]``, one number per channel.

    Expanded, both real 1x1 convolutions are, so FLOPs and weights stay those of the base network (ES-BNN's released
    ``bnext_rep_ops``); their bottleneck is ``channels / reduction`` wide like every other stream.

    Args:
        channels: wide width.
        reduction: of the bottleneck.
        expand: see :class:`Expansion`.
        gate: ``'sigmoid'`` or ``'hardsigmoid'``.

    Shape: ``[N, C, H, W]`` -> ``[N, C, 1, 1]``.
    """

    GATES = {'sigmoid': nn.Sigmoid, 'hardsigmoid': nn.Hardsigmoid}

    @checked_arguments
    def __init__(self, channels: int, reduction: int = 8, expand: dict | Expansion | None = None, gate: str = 'sigmoid'):
        super().__init__()
        if gate not in self.GATES:
            raise ValueError(unknown('gate', gate, self.GATES))
        if channels % reduction:
            raise ValueError(f'SqueezeExcite: {channels} channels are not divisible by reduction={reduction}')
        self.squeeze = ExpandedConv2d(channels, channels // reduction, 1, expand=expand)
        self.excite = ExpandedConv2d(channels // reduction, channels, 1, expand=expand)
        self.gate = self.GATES[gate]()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()))


def checked_expand(expand: dict | Expansion | None, groups: int = 1) -> Expansion | None:
    """The expansion of a convolution, which has groups of its own."""
    expand = Expansion.of(expand)
    if expand is not None and groups != 1:
        raise ValueError(f'groups={groups} cannot be expanded: a filter of a grouped convolution has too few inputs to share. '
                         'Leave expand out here, or use the groups of expand=dict(tau=..., groups=...)')
    return expand


def widen_bias_(layer: nn.Conv2d | nn.Linear) -> None:
    """The bias comes after the tile, one number for every copy: draw it as the float layer does, at the outer width."""
    if layer.expand is not None and layer.bias is not None:
        bound = layer.weight[0].numel() ** -0.5
        wide = layer.bias.new_empty(len(layer.bias) * layer.expand.replicas)
        layer.bias = nn.Parameter(wide.uniform_(-bound, bound))


def input_copies(layer) -> int:
    """How often a drop-in expanded layer tiles its own input."""
    return layer.expand.copies if layer.expand is not None and layer.expand.drop_in else 1


def expand_input(layer, x: Tensor) -> Tensor:
    """What the activation binarizer of a latent or packed layer sees: drop-in layers tile, with an offset for each copy."""
    if layer.copy_shift is None:
        return x
    x = tile(x, input_copies(layer), layer.channel_dim)
    return x + per_channel(layer.copy_shift, x.ndim, layer.channel_dim)
