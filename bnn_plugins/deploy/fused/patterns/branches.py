"""Pool branches of tokens: one depthwise convolution, whose kernel has their windows as its rows and columns."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ....layers.tokens import PoolBranches
from ...packed import has_hooks
from ..match import Match, Matcher
from ..steps import Step, UnownedModules


@dataclass(eq=False)
class Branches(Match):
    branches: PoolBranches = None

    reads_stream = makes_images = False

    def step(self, consumer, keep, in_place):
        return BranchesStep(self.branches)


def match(m: Matcher) -> Iterator[Branches]:
    for node in m.free():
        module = m.module(node)
        if type(module) is PoolBranches and len(node.args) == 1 and not any(map(has_hooks, module.modules())) \
                and all(size % 2 for window in module.windows for size in window):
            yield Branches([node], label=node.target, branches=module)


class BranchesStep(Step):
    is_conv = False
    text = 'one convolution'

    def __init__(self, branches: PoolBranches):
        super().__init__()
        self.held = UnownedModules([branches])

    def layers(self) -> list[torch.nn.Module]:
        return list(self.held[0].scales)

    def kernel(self, sizes: bool = False) -> tuple[Tensor, Tensor]:
        """Weight float64 ``[C, 1, most, most]`` and bias ``[C]``; ``sizes``: of the magnitudes."""
        windows, scales = self.held[0].windows, self.held[0].scales
        most, bias = max(max(window) for window in windows), 0
        weight = torch.zeros(len(scales[0].scale), 1, most, most, dtype=torch.float64, device=scales[0].scale.device)
        for (height, width), layer in zip(windows, scales, strict=True):
            scale, shift = (v.detach().double().abs() if sizes else v.detach().double() for v in (layer.scale, layer.shift))
            rows, columns = (slice((most - side) // 2, (most + side) // 2) for side in (height, width))
            weight[:, 0, rows, columns] += (scale / (height * width)).view(-1, 1, 1)
            bias = bias + shift
        return weight, bias

    def prepare(self) -> None:
        weight, bias = self.kernel()
        self._set_constant('weight', weight.to(self.host).contiguous(memory_format=torch.channels_last))
        self._set_constant('bias', bias.to(self.host))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias).contiguous()

    def error_bound(self, x, shortcut, expected):
        return self.convolve(x.double().abs(), *self.kernel(sizes=True)) * self.rounding(expected, self.weight[0].numel())
