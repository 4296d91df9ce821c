"""A binary depthwise-separable network, after MoBiNet."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor

from ...binarize.lookup import checked_arguments
from ...registry import MODELS
from ..blocks import BinaryUnit
from ..layer_factory import LayerFactory, match_width, pool
from .mobile import MobileBackbone


class SeparableBlock(BaseModule):
    """A 3x3 unit in groups of ``k`` channels, then a 1x1 unit, each with a shortcut without parameters.

    ``[N, W(in), H, W]`` -> ``[N, W(out), H/stride, W/stride]`` (rounded up).
    """

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int, k: int):
        super().__init__()
        self.stride = stride
        self.depthwise = BinaryUnit(factory, in_channels, in_channels, 3, stride, groups=in_channels // k)
        self.pointwise = BinaryUnit(factory, in_channels, out_channels, 1)
        self.width = factory.wide(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x, pool(x, self.stride))
        return self.pointwise(x, match_width(x, self.width))


@MODELS.register_module()
class BNNMoBiNet(MobileBackbone):
    """MobileNet v1 with binary depthwise and pointwise convolutions and a shortcut around each.

    A sum of nine signs has ten values and says little; ``k`` channels per group (the *K-dependency* of the paper) make it
    ``9 k + 1``. Source: Phan et al. 2020 (MoBiNet), arXiv 1907.12629; the paper's shortcuts differ in detail.

    Args:
        k (int): channels that one 3x3 kernel sees; 1 is depthwise. A multiple of tau where the network is expanded.
        method, act, pad_value, expand: see :class:`.LayerFactory`.
        in_channels, base_channels, out_indices, norm_cfg, init_cfg: as in ``mmdet.ResNet``; by default the last map.
        blocks: how many blocks each stage has.
        stem_stride: 2, or 1 for small images.

    Raises:
        ValueError: for a ``k`` that does not divide the widths, and for ``out_indices`` that no stage has.
    """

    @checked_arguments
    def __init__(self, k: int = 4, method: str | dict = 'reactnet', act: str = 'auto', pad_value: int = 0,
                 expand: dict | None = None, in_channels: int = 3, base_channels: int = 32,
                 blocks: Sequence[int] = (1, 2, 2, 6, 2), stem_stride: int = 2, out_indices: Sequence[int] = (4,),
                 norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        if k < 1 or base_channels % k:
            raise ValueError(f'k channels per group must divide the {base_channels} channels of the stem, but got k={k}')
        factory = LayerFactory(method, act, pad_value, norm_cfg, expand)
        super().__init__(factory, blocks, base_channels, lambda *args: SeparableBlock(factory, *args, k), in_channels,
                         stem_stride, out_indices, init_cfg)
