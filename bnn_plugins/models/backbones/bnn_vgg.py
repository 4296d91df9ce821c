"""Binary VGGs: VGG-small for 32x32 images, VGG16 for SSD."""

from collections.abc import Sequence

from torch import Tensor, nn

from ...binarize.lookup import checked_arguments
from ...registry import MODELS
from ..blocks import BinaryUnit
from ..layer_factory import LayerFactory, match_width, pool
from .base import BinaryBackbone, check_out_indices


class PooledUnit(nn.Module):
    """``act(norm(maxpool(binary conv(x))))``: XNOR-Net's order, pooling before the norm, so that the next sign is balanced.

    ``[N, W(in), H, W]`` -> ``[N, W(out), H / pool, W / pool]``.
    """

    def __init__(self, factory: LayerFactory, conv: nn.Module, out_channels: int, pool: int):
        super().__init__()
        self.conv = conv
        self.pool = nn.MaxPool2d(pool) if pool > 1 else nn.Identity()
        self.norm = factory.norm(out_channels, spread=True)[1]
        self.act = factory.nonlinearity(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.pool(self.conv(x))))


@MODELS.register_module()
class BNNVGGSmall(BinaryBackbone):
    """VGG-small: 128-128-256-256-512-512, pooled after every second convolution; the first convolution is real.

    No shortcuts. 32x32 images leave as 512x4x4 (strides 2, 4, 8). Source: the VGG-small of IR-Net (arXiv 1909.10788), RBNN and
    ReCU on CIFAR-10; their classifier is one linear layer on the flattened map.

    Args:
        method, act, pad_value, expand: see :class:`.LayerFactory`.
        in_channels, base_channels, out_indices, norm_cfg, init_cfg: as in ``mmdet.ResNet``; by default the last map.
    """

    @checked_arguments
    def __init__(self, method: str | dict = 'reactnet', act: str = 'auto', pad_value: int = 0, expand: dict | None = None,
                 in_channels: int = 3, base_channels: int = 128, out_indices: Sequence[int] = (2,),
                 norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(LayerFactory(method, act, pad_value, norm_cfg, expand), init_cfg)
        self.out_indices = check_out_indices('BNNVGGSmall', out_indices, 3)
        self.widths = [base_channels * 2**stage for stage in range(3)]
        self.stem = self.make_stem(in_channels, base_channels)
        self.stages = nn.ModuleList()
        width = base_channels
        for stage, out in enumerate(self.widths):
            layer = nn.Sequential()
            for inputs, pool_size in ([(width, 2)] if stage == 0 else [(width, 1), (out, 2)]):
                layer.append(PooledUnit(self.factory, self.factory.conv(inputs, out, 3), out, pool_size))
            self.stages.append(layer)
            width = out
        self.feat_dim = self.out_width(width)

    def make_stem(self, in_channels: int, channels: int) -> nn.Module:
        return self.factory.stem(in_channels, channels)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, in_channels, H, W]`` -> one ``[N, C_i, H_i, W_i]`` for each of ``out_indices``."""
        x, outs = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(self.output(x, self.widths[index]))
        return tuple(outs)


class ShortcutUnit(BinaryUnit):
    """A :class:`BinaryUnit` whose shortcut has no parameters: pooled, and tiled where the width grows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, match_width(x, self.norm.num_features))


@MODELS.register_module()
class BNNSSDVGG(BinaryBackbone):
    """VGG16 of SSD: the type of ``mmdet.SSDVGG``'s config changes, nothing else.

    13 convolutions, then conv6 (3x3, dilation 6) and conv7 (1x1), 1024 wide; all but the first are binary, with a shortcut
    without parameters around each. Average pooling between the stages: maxima have no sign to tell. Outputs: conv4_3 (512,
    stride 8) and conv7 (1024, stride 16). Source of the layout: Liu et al. 2016 (SSD), arXiv 1512.02325.

    Args:
        method, act, pad_value, expand: see :class:`.LayerFactory`.
        depth, with_last_pool, ceil_mode, out_indices, out_feature_indices: accepted with the values of mmdet's SSD configs.
        in_channels, base_channels, norm_cfg, init_cfg: as in ``mmdet.ResNet``.

    Raises:
        ValueError: for other values of the arguments that are only accepted.
    """

    blocks = (2, 2, 3, 3, 3)
    factors = (1, 2, 4, 8, 8)

    @checked_arguments
    def __init__(self, depth: int = 16, method: str | dict = 'reactnet', act: str = 'auto', pad_value: int = 0,
                 expand: dict | None = None, in_channels: int = 3, base_channels: int = 64, with_last_pool: bool = False,
                 ceil_mode: bool = True, out_indices: Sequence[int] = (3, 4), out_feature_indices: Sequence[int] = (22, 34),
                 norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(LayerFactory(method, act, pad_value, norm_cfg, expand), init_cfg)
        given = (depth, with_last_pool, ceil_mode, tuple(out_indices), tuple(out_feature_indices))
        if given != (16, False, True, (3, 4), (22, 34)):
            raise ValueError('BNNSSDVGG is the VGG16 of SSD: depth=16, with_last_pool=False, ceil_mode=True, '
                             f'out_indices=(3, 4), out_feature_indices=(22, 34), but got {given}')
        self.stem = self.factory.stem(in_channels, base_channels)
        self.stages = nn.ModuleList()
        width = base_channels
        for stage, (blocks, factor) in enumerate(zip(self.blocks, self.factors, strict=True)):
            layer, out = nn.Sequential(), base_channels * factor
            for _ in range(blocks - (stage == 0)):  # the stem is the first layer of the first stage
                layer.append(ShortcutUnit(self.factory, width, out, 3))
                width = out
            self.stages.append(layer)
        self.conv6 = ShortcutUnit(self.factory, width, 2 * width, 3, dilation=6)
        self.conv7 = ShortcutUnit(self.factory, 2 * width, 2 * width, 1)
        self.widths = [width, 2 * width]

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, in_channels, H, W]`` -> ``[N, 512, H/8, W/8]`` and ``[N, 1024, H/16, W/16]`` (rounded up)."""
        x = self.stages[0](self.stem(x))
        for stage in self.stages[1:4]:
            x = stage(pool(x, 2))
        out = self.conv7(self.conv6(self.stages[4](pool(x, 2))))
        return self.output(x, self.widths[0]), self.output(out, self.widths[1])
