"""The real-valued shortcut of a binary ResNet: pooling, 1x1 convolution and norms, in front of a sum."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import OpIO, PreparedOp

from ...packed import PackedConv2d, has_hooks
from ..fold import folded_weight, is_float_conv, pair
from ..match import Match, Matcher, is_single
from ..steps import Step, UnownedModules


@dataclass(eq=False)
class Downsample(Match):
    conv: nn.Conv2d = None
    pool: int = 1
    norms: list[nn.Module] = field(default_factory=list)

    def step(self, consumer, keep, in_place):
        return DownsampleStep(self.pool, self.conv, self.norms)


def match(m: Matcher) -> Iterator[Downsample]:
    for reader in m.readers:
        if reader.shortcut is not None and isinstance(reader.layer, PackedConv2d):
            found = find(m, reader.shortcut)
            if found is not None:
                yield found


def find(m: Matcher, result: fx.Node) -> Downsample | None:
    """What ends at ``result``."""
    nodes, norms, node = [], [], result
    while m.is_plain_norm(node):
        norms.insert(0, m.module(node))
        nodes.insert(0, node)
        node = node.args[0]
    conv = m.module(node)
    if not is_float_conv(conv) or not is_pointwise(conv) or not is_single([node, *nodes]):
        return None
    nodes.insert(0, node)
    pool, before = 1, node.args[0]
    module = m.module(before)
    if isinstance(module, nn.AvgPool2d) and len(before.users) == 1 and (size := pool_size(module)) and not has_hooks(module):
        nodes.insert(0, before)
        pool = size
    if conv.weight.dtype == torch.float64 or m.taken & set(nodes):
        return None
    return Downsample(nodes, label=nodes[0].target, conv=conv, pool=pool, norms=norms)


class DownsampleStep(Step):
    joins = owns = True

    def __init__(self, pool: int, conv: nn.Conv2d, norms: list[nn.Module]):
        super().__init__()
        self.pool, self.held, self.norms = pool, UnownedModules([conv, *norms]), UnownedModules(norms)
        self.text = 'downsample'

    def layers(self) -> list[nn.Module]:
        return list(self.held)

    def prepare(self) -> None:
        weight, bias = folded_weight(self.held[0], self.norms)
        self._set_constant('weight', weight.flatten(1).float())
        self._set_constant('bias', bias.float())
        self.prepared_op = PreparedOp('downsample2d', weight=self.weight, bias=self.bias, pool=self.pool)

    def io(self, out, x):
        return OpIO({'x': x}, (out,))

    def forward(self, x: Tensor) -> Tensor:
        if PreparedOp.direct(x):
            return self.prepared_op(x=x)
        return bnn_kernels.downsample2d(x, self.weight, self.bias, self.pool)

    def error_bound(self, x, shortcut, expected):
        weight, bias = folded_weight(self.held[0], self.norms, sizes=True)
        pooled = F.avg_pool2d(x.double().abs(), self.pool, self.pool, ceil_mode=True, count_include_pad=False)
        return F.conv2d(pooled, weight, bias) * self.rounding(x, weight[0].numel())


def is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0) and conv.groups == 1 \
        and not has_hooks(conv)


def pool_size(pool: nn.AvgPool2d) -> int:
    """Window and stride of a pooling that ``downsample2d`` knows, else 0."""
    sizes = {*pair(pool.kernel_size), *pair(pool.stride)}
    known = len(sizes) == 1 and pair(pool.padding) == (0, 0) and pool.ceil_mode and not pool.count_include_pad
    return sizes.pop() if known and pool.divisor_override is None else 0
