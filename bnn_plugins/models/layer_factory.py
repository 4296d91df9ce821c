"""Layers of native networks: convolutions, norms and non-linearities of one method and one expansion.

All widths that a network says are those of its base network; a layer knows how wide it really is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from ..binarize import InputSpec, build_method
from ..layers import (
    BinaryConv2d,
    BinaryLinear,
    ExpandedConv2d,
    Expansion,
    SqueezeExcite,
    Tile,
    build_act,
    expanded_width,
    spread_copies_,
)
from ..layers.expand import mean_over
from .residual_scale import ResidualScale
from .thresholds import MultiThreshold, UntiedThresholds


@dataclass
class LayerFactory:
    """Builds the layers of a network. ``W(C)`` is the width of the stream where the base network has ``C`` channels.

    Attributes:
        method: see :func:`bnn_plugins.list_methods`; ``None``: real layers, the float twin of the network.
        act: non-linearity of the units; ``'auto'``: the method's own, ReLU without a method.
        pad_value: what stands outside of the image after the sign: 0, -1 or 1.
        norm_cfg: norm of the units; default batch norm.
        expand: :class:`bnn_plugins.layers.Expansion` (``dict(tau=2, groups=1, style='es', spread=0.0)``), or the control
            :class:`MultiThreshold` (``dict(style='thresholds', tau=2)``). Where the method has no thresholds, ``spread`` goes
            to the biases of norms in front of which no shortcut keeps the copies apart.

    Raises:
        ValueError: for an unknown method, act or key; for a width that tau does not divide; for layers inside of which the
            expansion would have to be repeated (``style='drop_in'``); for an expansion without a method.
    """

    method: str | dict | None = 'reactnet'
    act: str = 'auto'
    pad_value: int = 0
    norm_cfg: dict | None = None
    expand: dict | Expansion | None = None

    def __post_init__(self):
        if self.method is None and self.expand is not None:
            raise ValueError('expand is for binary networks: name a method, or leave expand out')
        bundle = None if self.method is None else build_method(self.method)
        self.norm_cfg = self.norm_cfg or dict(type='BN', requires_grad=True)
        if self.act == 'auto':
            self.act = 'relu' if bundle is None else bundle.act
        control = isinstance(self.expand, dict) and self.expand.get('style') == 'thresholds'
        self.thresholds = MultiThreshold.of(self.expand) if control else MultiThreshold()
        self.expand = None if control else Expansion.of(self.expand)
        if self.expand is not None and self.expand.drop_in:
            raise ValueError("style='drop_in' is for single layers; native networks have the styles 'es', 'rep', 'thresholds'")
        self.copies = 1 if self.expand is None else self.expand.copies
        self.norm_spread = 0.0
        if self.expand is not None and not hasattr(bundle.activation(InputSpec(in_channels=1)), 'shift'):
            self.norm_spread = self.expand.spread
            if self.norm_spread and self.expand.style == 'rep':
                raise ValueError("spread: with style='rep' the copies of the stem have no parameters of their own: use "
                                 "style='es', or a method with thresholds")

    def wide(self, channels: int) -> int:
        """``W(channels)``."""
        return expanded_width(channels, self.expand)

    def conv(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1,
             groups: int = 1) -> nn.Module:
        """A binary convolution without bias, 'same' padding: ``W(in)`` -> ``W(out)`` channels."""
        common = dict(kernel_size=kernel_size, stride=stride, padding=dilation * (kernel_size // 2), dilation=dilation,
                      bias=False)
        if self.method is None:
            return nn.Conv2d(in_channels, out_channels, groups=groups, **common)
        common.update(method=self.method, pad_value=self.pad_value)
        tau = self.thresholds.tau
        if tau > 1:
            self._check(out_channels // groups, tau)
            conv = BinaryConv2d(in_channels * tau, out_channels, groups=groups * tau, **common)
            return nn.Sequential(UntiedThresholds(in_channels, self.thresholds), conv)
        if self.expand is not None and groups > 1:
            # Each group is expanded by itself: kernels tau times deeper and fewer, which a depthwise layer does not have.
            self._check(out_channels // groups, self.expand.tau)
            conv = BinaryConv2d(self.wide(in_channels), out_channels // self.expand.tau, groups=groups * self.expand.groups,
                                **common)
            return nn.Sequential(conv, Tile(self.expand.replicas))
        return BinaryConv2d(self.wide(in_channels), self.wide(out_channels), groups=groups, expand=self.expand, **common)

    def linear(self, in_features: int, out_features: int) -> nn.Linear:
        """A binary linear layer without bias: ``W(in)`` -> ``W(out)`` features."""
        if self.method is None:
            return nn.Linear(in_features, out_features, bias=False)
        if self.thresholds.tau > 1:
            raise ValueError("expand=dict(style='thresholds') needs groups, which binary linear layers do not have")
        return BinaryLinear(self.wide(in_features), self.wide(out_features), bias=False, method=self.method,
                            expand=self.expand)

    def real_conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        """A real 1x1 convolution between streams, as cheap as the base network's: ``W(in)`` -> ``W(out)`` channels."""
        kind = dict(expand=self.expand) if self.expand is not None else {}
        return (ExpandedConv2d if kind else nn.Conv2d)(self.wide(in_channels), self.wide(out_channels), 1, stride, bias=False,
                                                       **kind)

    def squeeze_excite(self, channels: int, reduction: int) -> SqueezeExcite:
        """``[N, W(channels), H, W]`` -> ``[N, W(channels), 1, 1]`` in [0, 1]."""
        return SqueezeExcite(self.wide(channels), reduction, self.expand)

    def norm(self, channels: int, postfix: int | str = '', spread: bool = False) -> tuple[str, nn.Module]:
        """Name and norm of ``W(channels)`` channels; ``spread``: nothing else tells the copies in front of it apart."""
        name, norm = build_norm_layer(self.norm_cfg, self.wide(channels), postfix=postfix)
        if self.copies > 1 and spread:
            self._mark(norm, self.expand.replicas)
        return name, norm

    def norm1d(self, features: int) -> nn.BatchNorm1d:
        """A batch norm of ``W(features)`` features behind a linear layer."""
        norm = nn.BatchNorm1d(self.wide(features))
        if self.copies > 1:
            self._mark(norm, self.expand.replicas)
        return norm

    def nonlinearity(self, channels: int) -> nn.Module:
        return build_act(self.act, self.wide(channels))

    def stem(self, in_channels: int, channels: int, kernel_size: int = 3, stride: int = 1, act: bool = True) -> nn.Sequential:
        """The real first layer: ``in_channels`` -> ``W(channels)``."""
        stem = nn.Sequential()
        stem.add_module('conv', nn.Conv2d(in_channels, channels, kernel_size, stride, kernel_size // 2, bias=False))
        norm = self.stem_norm(channels)[1]
        for module in self.around_norm(norm):
            stem.add_module('norm' if module is norm else 'tile', module)
        if act:
            stem.add_module('act', self.nonlinearity(channels))
        return stem

    def stem_norm(self, channels: int, postfix: int | str = '') -> tuple[str, nn.Module]:
        """Name and norm of the stem: of all copies where they are made before it, else of the base network's channels."""
        repeated = self.copies > 1 and self.expand.style == 'es'
        name, norm = build_norm_layer(self.norm_cfg, self.wide(channels) if repeated else channels, postfix=postfix)
        if isinstance(norm, ResidualScale):
            norm.scale = 1.0
        if repeated:
            self._mark(norm, self.copies)
        return name, norm

    def around_norm(self, norm: nn.Module) -> list[nn.Module]:
        """The stem's norm, and the tile in front of it (ES-BNN's code: the copies differ at once) or behind it (RepBNN's)."""
        if self.copies == 1:
            return [norm]
        tile = Tile(self.copies)
        return [tile, norm] if self.expand.style == 'es' else [norm, tile]

    def untie_(self, model: nn.Module) -> None:
        """Spread the marked biases; after any other initialisation."""
        for norm in model.modules():
            copies = getattr(norm, 'untied_copies', 1)
            if self.norm_spread and copies > 1:
                with torch.no_grad():
                    spread_copies_(norm.bias.zero_(), copies, self.norm_spread)

    def _mark(self, norm: nn.Module, copies: int) -> None:
        norm.untied_copies = copies
        self.untie_(norm)

    @staticmethod
    def _check(channels: int, tau: int) -> None:
        if channels % tau:
            raise ValueError(f'tau={tau} must divide the {channels} output channels of each group of kernels')


def match_width(x: Tensor, channels: int) -> Tensor | None:
    """A shortcut without parameters from ``[N, C, H, W]`` to another width: groups of channels averaged where it shrinks to a
    divisor, channels tiled where it grows to a multiple, ``None`` for other widths."""
    if x.shape[1] == channels:
        return x
    if x.shape[1] % channels == 0:
        return mean_over(x.unflatten(1, (-1, channels)), 1, x.shape[1] // channels)
    if channels % x.shape[1] == 0:
        return x.repeat(1, channels // x.shape[1], 1, 1)
    return None


def pool(x: Tensor, stride: int) -> Tensor:
    """Average pooling as strided 'same' convolutions shrink: sizes are rounded up."""
    return x if stride == 1 else F.avg_pool2d(x, stride, stride, ceil_mode=True, count_include_pad=False)
