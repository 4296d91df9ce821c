"""BNext."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments, unknown
from ...registry import MODELS
from ..layer_factory import LayerFactory, pool
from .mobile import MobileBackbone

SE_RATIO = 8


class Processor(BaseModule):
    """One binary convolution of BNext with its attention, ``[N, W(C), H, W]`` -> ``[N, W(C), H/stride, W/stride]``.

    ``y = prelu(norm(binary conv(x)))``, then *information recoupling* ``y = SE(s x + (1 - s) y) * y`` with a learned ``s`` in
    [0, 1] per channel. ``multiply=True`` is the *element-wise attention*: ``y`` is multiplied by the shortcut ``prelu(x)``
    before it is normalised and added to it. Source: Guo et al. 2022 (BNext), arXiv 2211.12933, fig. 3 and 4.
    """

    def __init__(self, factory: LayerFactory, channels: int, kernel_size: int, stride: int = 1, multiply: bool = False):
        super().__init__()
        self.stride = stride
        self.conv = factory.conv(channels, channels, kernel_size, stride)
        self.norm1 = factory.norm(channels)[1]
        self.act = factory.nonlinearity(channels)
        self.shortcut_act = factory.nonlinearity(channels) if multiply else None
        self.mix = nn.Parameter(torch.full((factory.wide(channels), 1, 1), 0.5))
        self.attention = factory.squeeze_excite(channels, SE_RATIO)
        self.norm2 = factory.norm(channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.norm1(self.conv(x)))
        shortcut = pool(x if self.shortcut_act is None else self.shortcut_act(x), self.stride)
        if self.training:
            with torch.no_grad():
                self.mix.clamp_(0, 1)
        out = self.attention(self.mix * pool(x, self.stride) + (1 - self.mix) * out) * out
        if self.shortcut_act is not None:
            out = out * shortcut
        return self.norm2(out) + shortcut


class BNextBlock(BaseModule):
    """A 3x3 processor, then a 1x1 one; where the width doubles, two 1x1 processors, concatenated."""

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int, multiply: bool):
        super().__init__()
        self.spatial = Processor(factory, in_channels, 3, stride, multiply)
        self.pointwise = nn.ModuleList(Processor(factory, in_channels, 1) for _ in range(out_channels // in_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        return torch.cat([branch(x) for branch in self.pointwise], 1)


@MODELS.register_module()
class BNNBNext(MobileBackbone):
    """BNext-T/S/M/L: the skeleton of ReActNet-A with attention in every unit.

    Every other block multiplies by its shortcut, the first does not. Source: Guo et al. 2022, arXiv 2211.12933.

    Args:
        size (str): ``'T'``, ``'S'``, ``'M'`` or ``'L'``; widths and numbers of blocks.
        method, act, pad_value, expand: see :class:`.LayerFactory`.
        in_channels, base_channels, out_indices, norm_cfg, init_cfg: as in ``mmdet.ResNet``; by default the last map.
        blocks: how many blocks each stage has; default: those of the size.
        stem_stride: 2, or 1 for small images.

    Raises:
        ValueError: for another size, and for ``out_indices`` that no stage has.
    """

    sizes = {
        'T': (32, (1, 2, 2, 6, 2)),
        'S': (48, (1, 2, 2, 6, 2)),
        'M': (48, (1, 4, 4, 8, 4)),
        'L': (64, (1, 4, 4, 16, 4)),
    }

    @checked_arguments
    def __init__(self, size: str = 'T', method: str | dict = 'bnext', act: str = 'prelu', pad_value: int = 0,
                 expand: dict | None = None, in_channels: int = 3, base_channels: int | None = None,
                 blocks: Sequence[int] | None = None, stem_stride: int = 2, out_indices: Sequence[int] = (4,),
                 norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        if size not in self.sizes:
            raise ValueError(unknown('size of BNNBNext', size, self.sizes))
        width, depths = self.sizes[size]
        blocks = blocks or depths
        factory = LayerFactory(method, act, pad_value, norm_cfg, expand)
        count = iter(range(sum(blocks)))
        super().__init__(factory, blocks, base_channels or width,
                         lambda *args: BNextBlock(factory, *args, multiply=next(count) % 2 == 1), in_channels, stem_stride,
                         out_indices, init_cfg)
        # PReLU in front of the pooling of the classifier; each output has its own.
        self.out_acts = nn.ModuleList(nn.PReLU(self.out_width(self.widths[index])) for index in self.out_indices)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        outs = super().maps(x)
        return tuple(act(out) for act, out in zip(self.out_acts, outs, strict=True))
