"""Building blocks that native models share."""

import torch.utils.checkpoint as cp
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor

from ..binarize import build_method
from ..layers import BinaryConv2d, build_act
from ..layers.training import in_format_of, unit2d
from .layer_factory import LayerFactory, match_width, pool


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
        expand (dict | None): expanding-and-shrinking inside of the convolution (``style='drop_in'``), ``dict(tau=2)``.

    Shape: ``[N, in_channels, H, W]`` -> ``[N, out_channels, H', W']``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, *,
                 method: str | dict = 'reactnet', pad_value: int = 0, norm_cfg: dict | None = None, act: str = 'auto',
                 expand: dict | None = None):
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.conv = BinaryConv2d(in_channels, out_channels, kernel_size, stride, padding, bias=norm_cfg is None,
                                 method=method, pad_value=pad_value, expand=expand and dict(expand, style='drop_in'))
        self.norm_name = None
        if norm_cfg is not None:
            self.norm_name, norm = build_norm_layer(norm_cfg, out_channels)
            self.add_module(self.norm_name, norm)
        self.act = build_act(build_method(method).act if act == 'auto' else act, out_channels)

    def shortcut(self, x: Tensor) -> Tensor | None:
        return match_width(pool(x, self.stride), self.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_name is not None:
            out = unit2d(self.conv, getattr(self, self.norm_name), self.act, x, self.shortcut(x))
            return in_format_of(x, out) if self.training else out
        out, shortcut = self.conv(x), self.shortcut(x)
        return self.act(out if shortcut is None else out + shortcut)


class BinaryUnit(BaseModule):
    """``act(norm(binary conv(x)) + shortcut)``: the real-valued stream goes around every sign.

    Source: Liu et al. 2018 (Bi-Real Net), arXiv 1808.00278, fig. 3; with RPReLU as ``act`` it is ReActNet's, arXiv 2003.03488.

    Shape: ``[N, W(in_channels), H, W]`` -> ``[N, W(out_channels), H', W']``, see :class:`.LayerFactory`.
    """

    def __init__(self, factory: LayerFactory, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1,
                 dilation: int = 1, groups: int = 1, act: bool = True, residual: bool = True):
        super().__init__()
        self.conv = factory.conv(in_channels, out_channels, kernel_size, stride, dilation, groups)
        self.norm = factory.norm(out_channels, spread=not residual)[1]
        self.act = factory.nonlinearity(out_channels) if act else None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return unit2d(self.conv, self.norm, self.act, x, shortcut)


class CheckpointedModule(BaseModule):
    """A block that may give up its activations and compute them again in the backward pass (``with_cp``)."""

    with_cp = False

    def run(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return cp.checkpoint(self.run, x, use_reentrant=False)
        return self.run(x)
