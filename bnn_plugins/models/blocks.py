"""Building blocks that native models share."""

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor

from ..binarize import build_method
from ..layers import BinaryConv2d, build_act


class BinaryConvModule(BaseModule):
    """``act(norm(binary conv(x)) + shortcut(x))``, the binary counterpart of mmcv's ``ConvModule``.

    The shortcut has no parameters: average pooling for a stride, groups of channels averaged where the width shrinks to a
    divisor, channels tiled where it grows to a multiple; no shortcut for other widths.

    Args:
        in_channels, out_channels, kernel_size, stride, padding: as in ``nn.Conv2d``.
        method (str | dict): see :func:`bnn_plugins.list_methods`.
        pad_value (int): 0, -1 or 1.
        norm_cfg (dict | None): norm after the convolution; without one the convolution has a bias.
        act (str): ``'auto'`` (the method's own) or a name of :func:`bnn_plugins.layers.build_act`.

    Shape: ``[N, in_channels, H, W]`` -> ``[N, out_channels, H', W']``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, *,
                 method: str | dict = 'reactnet', pad_value: int = 0, norm_cfg: dict | None = None, act: str = 'auto'):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.conv = BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=norm_cfg is None,
                                 method=method, pad_value=pad_value)
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm_layer(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        self.act = build_act(build_method(method).act if act == 'auto' else act, out_channels)

    def shortcut(self, x: Tensor) -> Tensor | None:
        if self.stride != 1:
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        if self.in_channels == self.out_channels:
            return x
        if self.in_channels % self.out_channels == 0:
            return x.unflatten(1, (-1, self.out_channels)).mean(1)
        if self.out_channels % self.in_channels == 0:
            return x.repeat(1, self.out_channels // self.in_channels, 1, 1)
        return None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        if self.norm_name is not None:
            out = getattr(self, self.norm_name)(out)
        shortcut = self.shortcut(x)
        return self.act(out if shortcut is None else out + shortcut)
