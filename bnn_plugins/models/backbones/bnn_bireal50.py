"""Bi-Real-50: bottlenecks with a second stream."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from ..layer_factory import pool
from .bnn_resnet import BinaryBlock, BNNResNet


def leaky_clip(x: Tensor) -> Tensor:
    """``x`` in [-1, 1], slope 0.1 outside."""
    inner = F.hardtanh(x)
    return inner + 0.1 * (x - inner)


class TwoStreamBottleneck(BinaryBlock):
    """1x1, 3x3, 1x1 units with a shortcut around each: the 1x1 that widens adds to the wide stream, the other two to a narrow
    one, which passes from the 3x3 of a block to the first 1x1 of the next.

    The first block of the network has no narrow stream yet, and its first 1x1 is real, behind :func:`leaky_clip`.

    ``[N, in + in / 4, H, W]`` (the first: ``[N, in, H, W]``) -> ``[N, 4 planes + planes, H/stride, W/stride]`` (rounded up),
    the wide stream in front.
    """

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int, dilation: int, avg_down: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.first, self.stride, self.wide = inplanes == planes, stride, self.factory.wide(inplanes)
        self.add_unit(1, inplanes, planes, 1)
        self.add_unit(2, planes, planes, 3, stride, dilation)
        self.add_unit(3, planes, planes * self.expansion, 1)
        self.add_downsample(inplanes, planes * self.expansion, stride, avg_down)
        self.narrow = None
        if self.first:
            self.conv1 = self.factory.real_conv(inplanes, planes)
        elif self.downsample is not None:
            self.narrow = self.factory.real_conv(inplanes // self.expansion, planes)

    def run(self, x: Tensor) -> Tensor:
        x, narrow = x[:, :self.wide], x[:, self.wide:]
        if self.first:
            out = self.unit(1, leaky_clip(x), None)
        else:
            out = self.unit(1, x, narrow if self.narrow is None else self.narrow(narrow))
        narrow = self.unit(2, out, pool(out, self.stride))
        return torch.cat([self.unit(3, narrow, self.shortcut(x)), narrow], 1)


@MODELS.register_module()
class BNNBiReal50(BNNResNet):
    """Bi-Real Net of 50 layers; outputs are those of the wide stream (256 to 2048 channels, strides 4 to 32).

    Source: Liu et al. 2018, arXiv 1808.00278, and the released ``BiReal_50``.

    Args:
        all: as in :class:`BNNResNet`; ``depth`` is 50. The published network has ``pool_last=True``.
    """

    arch_settings = {50: (TwoStreamBottleneck, (3, 4, 6, 3))}
    styles = ('pytorch',)

    def __init__(self, depth: int = 50, method: str | dict = 'bireal', **kwargs):
        super().__init__(depth, method, **kwargs)
