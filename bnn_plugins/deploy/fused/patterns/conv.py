"""A real convolution, its norms and non-linearity."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...packed import has_hooks
from ..fold import folded_weight, is_float_conv, through_act
from ..match import Match, Matcher
from ..steps import Step, Tail, UnownedModules


@dataclass(eq=False)
class Conv(Match):
    conv: nn.Conv2d = None
    norms: list[nn.Module] = field(default_factory=list)
    act: nn.Module | str | None = None

    reads_stream = False

    def step(self, consumer, keep, in_place):
        return ConvStep(self.conv, self.norms, self.act)


def match(m: Matcher) -> Iterator[Conv]:
    for node in m.free():
        conv, found = m.module(node), Conv([node], label=node.target)
        if not is_float_conv(conv) or has_hooks(conv) or len(node.args) != 1 or conv.weight.dtype == torch.float64:
            continue
        found.conv = conv
        while found.act is None and (reader := m.next(found.result)) is not None:
            module = m.module(reader)
            if m.is_plain_norm(reader):
                found.norms.append(module)
            elif (act := m.act_of(reader, None)) is not None and not (module is not None and has_hooks(module)):
                found.act = act
            else:
                break
            found.nodes.append(reader)
        yield found


class ConvStep(Step):
    """With its norms folded in, in channels-last memory."""

    owns = True

    def __init__(self, conv: nn.Conv2d, norms: list[nn.Module], act: nn.Module | str | None):
        super().__init__()
        self.held, self.norms, self.tail = UnownedModules([conv, *norms]), UnownedModules(norms), Tail(act)
        self.geometry, self.text = (conv.stride, conv.padding, conv.dilation, conv.groups), 'conv'

    def layers(self) -> list[nn.Module]:
        return [*self.held, *self.tail.modules]

    def prepare(self) -> None:
        conv = self.held[0]
        weight, bias = folded_weight(conv, self.norms)
        bias = self.tail.prepare(bias)
        self._set_constant('weight', weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last))
        self._set_constant('bias', bias.to(conv.weight.dtype) if bias.any() or conv.bias is not None or self.norms else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.conv2d(x, self.weight, self.bias, *self.geometry)).contiguous(memory_format=torch.channels_last)

    def error_bound(self, x, shortcut, expected):
        weight, bias = folded_weight(self.held[0], self.norms, sizes=True)
        total = through_act(F.conv2d(x.double().abs(), weight, bias, *self.geometry), self.tail.act, 1)
        return total * self.rounding(x, weight[0].numel())
