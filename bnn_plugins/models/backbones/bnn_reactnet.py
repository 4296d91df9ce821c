"""ReActNet-A."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor

from ...binarize.lookup import checked_arguments
from ...registry import MODELS
from ..blocks import BinaryUnit
from ..layer_factory import LayerFactory, pool
from .mobile import MobileBackbone


class ReActBlock(BaseModule):
    """A 3x3 unit, then a 1x1 unit; where the width doubles, two 1x1 convolutions on the same input, concatenated.

    Each of the two has thresholds of its own, as the paper's RSign belongs to a convolution; the released code shares one
    RSign between them (ReActNet-A: 992 parameters fewer). Published thresholds are imported into both.

    ``[N, W(C), H, W]`` -> ``[N, W(C) or W(2C), H/stride, W/stride]`` (rounded up).
    """

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride = stride
        self.unit1 = BinaryUnit(factory, in_channels, in_channels, 3, stride)
        self.branches = out_channels // in_channels
        for branch in range(self.branches):
            self.add_module(f'unit2_{branch}', BinaryUnit(factory, in_channels, in_channels, 1, act=False))
        self.act = factory.nonlinearity(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit1(x, pool(x, self.stride))
        return self.act(torch.cat([getattr(self, f'unit2_{branch}')(x, x) for branch in range(self.branches)], 1))


@MODELS.register_module()
class BNNReActNet(MobileBackbone):
    """ReActNet-A: MobileNet v1 with full binary 3x3 convolutions instead of depthwise ones, and no real shortcuts.

    13 blocks, widths 64, 128, 256, 512, 1024. Source: Liu et al. 2020 (ReActNet), arXiv 2003.03488, sec. 4.1.

    Args:
        method, act, pad_value, expand: see :class:`.LayerFactory`; ``style='rep'`` is Rep-ReActNet-A.
        in_channels, base_channels, out_indices, norm_cfg, init_cfg: as in ``mmdet.ResNet``; by default the last map.
        blocks: how many blocks each stage has.
        stem_stride: 2, or 1 for small images.

    Raises:
        ValueError: for ``out_indices`` that no stage has.
    """

    @checked_arguments
    def __init__(self, method: str | dict = 'reactnet', act: str = 'auto', pad_value: int = 0, expand: dict | None = None,
                 in_channels: int = 3, base_channels: int = 32, blocks: Sequence[int] = (1, 2, 2, 6, 2), stem_stride: int = 2,
                 out_indices: Sequence[int] = (4,), norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        factory = LayerFactory(method, act, pad_value, norm_cfg, expand)
        super().__init__(factory, blocks, base_channels, lambda *args: ReActBlock(factory, *args), in_channels, stem_stride,
                         out_indices, init_cfg)
