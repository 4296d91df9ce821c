"""Gains: real factors of the accumulators that are more than one number per filter.

A gain is a module ``(x, acc) -> factor``: ``x`` is the layer's real input (``[N, C, H, W]`` or ``[..., C]``), ``acc`` its
accumulators (``[N, O, H', W']`` or ``[..., O]``), the factor broadcasts over ``acc``. It stays a float module in the packed
layer and is applied to the integers, so the packed layer computes the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import per_channel

__all__ = ['DataDrivenGain', 'RankOneGain', 'SpatialGain']


class RankOneGain(nn.Module):
    r"""Learned scale :math:`\Gamma = s_c \otimes s_h \otimes s_w`, all started at 1 but :math:`s_c`, at :math:`1/\sqrt n`.

    ``spatial`` numbers along height and width are interpolated linearly to the size of the map, so that one layer serves
    every image size; where the size is ``spatial`` this is the paper's. ``spatial=None``, and features ``[..., O]``: channels
    only. Source: Bulat and Tzimiropoulos 2019 (XNOR-Net++), arXiv 1909.13863, case 4.
    """

    def __init__(self, out_channels: int, fan_in: int, channel_dim: int, spatial: int | None = None):
        super().__init__()
        self.channel_dim = channel_dim
        self.channel = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))
        spatial = spatial if channel_dim == 1 else None
        self.height, self.width = (nn.Parameter(torch.ones(spatial)) if spatial else None for _ in range(2))

    @staticmethod
    def _resized(values: Tensor, size: int) -> Tensor:
        if len(values) == size:
            return values
        wide = F.interpolate(values.float()[None, None], size, mode='linear', align_corners=False)
        return wide[0, 0].to(values.dtype)

    def forward(self, x: Tensor, acc: Tensor) -> Tensor:
        channel = per_channel(self.channel, acc.ndim, self.channel_dim)
        if self.height is None or self.width is None:
            return channel
        return (channel * self._resized(self.height, acc.shape[2])[:, None]
                * self._resized(self.width, acc.shape[3]))


class DataDrivenGain(nn.Module):
    r"""Scale computed from the real input: :math:`\mathrm{sigmoid}(W_2\,\mathrm{relu}(W_1 \bar x))`.

    For maps :math:`\bar x` is the mean over the positions and the scale ``[N, O, 1, 1]``; features ``[..., C]`` are taken as
    they are, each row has its own. Source: Martinez et al. 2020 (Real-to-Binary), arXiv 2003.11535, sec. 4.3; as in larq's
    models, which are never that narrow, there are ``in_channels // reduction`` hidden units, but at least 8, and no biases.
    """

    def __init__(self, in_channels: int, out_channels: int, channel_dim: int, reduction: int = 8):
        super().__init__()
        self.channel_dim = channel_dim
        self.squeeze = nn.Linear(in_channels, max(in_channels // reduction, 8), bias=False)
        self.excite = nn.Linear(self.squeeze.out_features, out_channels, bias=False)

    def forward(self, x: Tensor, acc: Tensor) -> Tensor:
        mean = x.mean(tuple(range(2, x.ndim))) if self.channel_dim == 1 else x
        gain = self.excite(self.squeeze(mean.to(self.squeeze.weight.dtype)).relu()).sigmoid()
        return gain.view(*gain.shape, *[1] * (x.ndim - 2)) if self.channel_dim == 1 else gain


class SpatialGain(nn.Module):
    r"""XNOR-Net's scale of the input, made trainable: :math:`k \circledast \overline{|x|} + b`, one learned filter and bias.

    The mean runs over the channels; the filter has the size, stride, padding and dilation of the layer and starts as the box
    filter with :math:`b = 0`. ``[N, C, H, W]`` -> ``[N, 1, H', W']``. Source: Zheng et al. 2024 (BiDM), arXiv 2412.05926,
    sec. 3.2, and its released code; the untrained scale is Rastegari et al. 2016 (XNOR-Net), arXiv 1603.05279, sec. 3.2.
    """

    def __init__(self, kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] | str,
                 dilation: tuple[int, int]):
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.filter = nn.Parameter(torch.full((1, 1, *kernel_size), 1 / math.prod(kernel_size)))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, acc: Tensor) -> Tensor:
        mean = x.abs().mean(1, keepdim=True).to(self.filter.dtype)
        return F.conv2d(mean, self.filter, self.bias, self.stride, self.padding, self.dilation)
