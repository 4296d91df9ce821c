"""Binary ResNets for images of 32x32."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments, unknown
from ...registry import MODELS
from ..blocks import BinaryUnit, CheckpointedModule
from ..layer_factory import LayerFactory, pool
from .base import BinaryBackbone, check_out_indices


class CifarBlock(CheckpointedModule):
    """Two 3x3 units: ``[N, W(in), H, W]`` -> ``[N, W(out), H/stride, W/stride]`` (rounded up).

    ``skips='double'``: a shortcut around each unit (Bi-Real Net); ``'single'``: one around both, as in the float ResNet.
    """

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int, shortcut: str, skips: str,
                 with_cp: bool):
        super().__init__()
        self.with_cp = with_cp
        self.both = skips == 'double'
        self.unit1 = BinaryUnit(factory, in_channels, out_channels, 3, stride, residual=self.both)
        self.unit2 = BinaryUnit(factory, out_channels, out_channels, 3)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else SHORTCUTS[shortcut](factory, in_channels, out_channels, stride)

    def run(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        if self.both:
            out = self.unit1(x, shortcut)
            return self.unit2(out, out)
        return self.unit2(self.unit1(x), shortcut)


class PadShortcut(nn.Module):
    """Option A of He et al. 2016: strided, zeros for the new channels, half of them on each side. No parameters.

    ``average=False`` takes every stride-th pixel (IR-Net), ``average=True`` their mean (ReCU).
    """

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int, average: bool = True):
        super().__init__()
        self.stride, self.average = stride, average
        self.new = factory.wide(out_channels) - factory.wide(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = pool(x, self.stride) if self.average else x[:, :, ::self.stride, ::self.stride]
        return F.pad(x, (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))


class ConvShortcut(BaseModule):
    """Average pooling (``average=False``: the stride of the convolution instead), real 1x1 convolution, norm."""

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, stride: int, average: bool = True):
        super().__init__()
        self.pool = stride if average else 1
        self.conv = factory.real_conv(in_channels, out_channels, 1 if average else stride)
        self.norm = factory.norm(out_channels, spread=True)[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(pool(x, self.pool)))


def binary_shortcut(factory: LayerFactory, in_channels: int, out_channels: int, stride: int) -> BinaryUnit:
    """A strided binary 1x1 convolution and a norm (RBNN's ResNet-18)."""
    return BinaryUnit(factory, in_channels, out_channels, 1, stride, act=False, residual=False)


SHORTCUTS = {
    'pad': PadShortcut, 'slice': partial(PadShortcut, average=False), 'conv': ConvShortcut,
    'strided': partial(ConvShortcut, average=False), 'binary': binary_shortcut,
}


@MODELS.register_module()
class BNNCifarResNet(BinaryBackbone):
    """ResNet-20/32/44/56/110 (three stages of width 16, 32, 64) and ResNet-18 (four of 64 to 512) for 32x32 images.

    The stem (a real 3x3 convolution, no pooling) and real shortcuts are all that is not binary. Strides of the outputs: 1, 2,
    4 (, 8). Source: the networks of IR-Net (arXiv 1909.10788), RBNN (2009.13055) and ReCU (2103.12369) on CIFAR-10.

    Args:
        depth (int): 18, or 6n + 2.
        method, act, pad_value, expand: see :class:`.LayerFactory`.
        shortcut (str): where the shape changes: ``'pad'`` (average pooling, new channels are zero), ``'slice'`` (every other
            pixel, new channels are zero), ``'conv'`` (average pooling, real 1x1 convolution, norm), ``'strided'`` (the same
            without pooling) or ``'binary'`` (binary 1x1 convolution, norm). Default: ``'conv'`` for ResNet-18, ``'pad'`` for
            the others.
        stem_act (bool): whether the stem has a non-linearity (not in the ResNet-18 of IR-Net, RBNN and ReCU).
        skips (str): ``'double'`` (around each convolution) or ``'single'`` (around two).
        in_channels, base_channels, out_indices, norm_cfg, with_cp, init_cfg: as in ``mmdet.ResNet``; by default the last map.
        residual_init (float): where the weights of the norms behind binary convolutions start; well below 1, gradients do not
            grow through many units (1e-8 in RBNN's released code).

    Raises:
        ValueError: for another depth, shortcut or skips, and for ``out_indices`` that no stage has.
    """

    @checked_arguments
    def __init__(self, depth: int = 20, method: str | dict | None = 'reactnet', act: str = 'auto', pad_value: int = 0,
                 expand: dict | None = None, shortcut: str | None = None, skips: str = 'double', stem_act: bool = True,
                 in_channels: int = 3, base_channels: int | None = None, out_indices: Sequence[int] | None = None,
                 residual_init: float = 1.0, norm_cfg: dict | None = None, with_cp: bool = False,
                 init_cfg: dict | list | None = None):
        super().__init__(LayerFactory(method, act, pad_value, norm_cfg, expand), init_cfg)
        if depth != 18 and (depth < 8 or (depth - 2) % 6):
            raise ValueError(f'BNNCifarResNet has depth 18 or 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), but got {depth}')
        shortcut = shortcut or ('conv' if depth == 18 else 'pad')
        if shortcut not in SHORTCUTS:
            raise ValueError(unknown('shortcut', shortcut, SHORTCUTS))
        if skips not in ('double', 'single'):
            raise ValueError(unknown('skips', skips, ('double', 'single')))
        stages, blocks, base = (4, 2, 64) if depth == 18 else (3, (depth - 2) // 6, 16)
        self.out_indices = check_out_indices('BNNCifarResNet', out_indices or (stages - 1,), stages)
        self.widths = [(base_channels or base) * 2**stage for stage in range(stages)]
        self.stem = self.factory.stem(in_channels, self.widths[0], act=stem_act)
        self.stages = nn.ModuleList()
        width = self.widths[0]
        for stage, out in enumerate(self.widths):
            layer = nn.Sequential()
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layer.append(CifarBlock(self.factory, width, out, stride, shortcut, skips, with_cp))
                width = out
            self.stages.append(layer)
        self.feat_dim = self.out_width(width)
        self.residual_init = residual_init

    def init_weights(self) -> None:
        super().init_weights()
        for unit in self.modules():
            if isinstance(unit, BinaryUnit) and self.residual_init != 1:
                nn.init.constant_(unit.norm.weight, self.residual_init)

    def maps(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, in_channels, H, W]`` -> one ``[N, C_i, H_i, W_i]`` for each of ``out_indices``."""
        x, outs = self.stem(x), []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in self.out_indices:
                outs.append(self.output(x, self.widths[index]))
        return tuple(outs)
