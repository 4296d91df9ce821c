"""A norm that stands alone in front of a binary convolution, and its non-linearity."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from ...packed import PackedConv2d, has_hooks
from ..fold import IMAGE_NORMS, is_float_conv, through_act, through_norms
from ..match import Match, Matcher, is_single
from ..steps import Step, Tail, UnownedModules


@dataclass(eq=False)
class Affine(Match):
    norm: nn.Module = None
    act: nn.Module | str | None = None

    def step(self, consumer, keep, in_place):
        return AffineStep(self.norm, self.act)


def match(m: Matcher) -> Iterator[Affine]:
    for reader in m.readers:
        if isinstance(reader.layer, PackedConv2d) and reader.input not in m.taken:
            found = find(m, reader.input)
            if found is not None:
                yield found


def find(m: Matcher, result: fx.Node) -> Affine | None:
    """What ends at ``result``."""
    act, node, nodes = None, result, [result]
    module = m.module(node)
    if not isinstance(module, IMAGE_NORMS):
        act = m.act_of(node, None)
        if act is None or not node.args or not isinstance(node.args[0], fx.Node) or (module and has_hooks(module)):
            return None
        node = node.args[0]
        nodes.insert(0, node)
    if not m.is_plain_norm(node) or not is_single(nodes):
        return None
    if is_float_conv(m.module(node.args[0])) and len(node.args[0].users) == 1:
        return None  # it is folded into the convolution
    return Affine(nodes, label=node.target, norm=m.module(node), act=act)


class AffineStep(Step):
    """Two passes over the stream instead of four."""

    owns = streams = True

    def __init__(self, norm: nn.Module, act: nn.Module | str | None):
        super().__init__()
        self.held, self.tail, self.text = UnownedModules([norm]), Tail(act), 'affine'

    def layers(self) -> list[nn.Module]:
        return [*self.held, *self.tail.modules]

    def prepare(self) -> None:
        mean = self.held[0].running_mean.double()
        scale, bias = through_norms(torch.ones_like(mean), torch.zeros_like(mean), self.held)
        self._set_constant('scale', scale.float().view(1, -1, 1, 1))
        self._set_constant('bias', self.tail.prepare(bias).float().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(torch.addcmul(self.bias, x.float(), self.scale))
        return x.to(self.stream).contiguous(memory_format=torch.channels_last)

    def error_bound(self, x, shortcut, expected):
        one = torch.ones(x.shape[1], dtype=torch.float64, device=x.device)
        scale, bias = (v.view(-1, 1, 1) for v in through_norms(one, one * 0, self.held, sizes=True))
        return through_act(x.double().abs() * scale + bias, self.tail.act, 1) * self.rounding(x)
