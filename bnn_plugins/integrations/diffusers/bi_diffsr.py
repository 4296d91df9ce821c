"""BI-DiffSR's residual blocks, sampling and fusion, in which no sign ever changes the width (Chen et al. 2024, arXiv
2406.05723, sec. 3.2, and its released code).

The paper's network doubles the width where it halves the image. Blocks of diffusers keep it there (the width changes in the
first residual layer of the next block), so here a quarter of the channels is unshuffled, and four times as many shuffled.
Their samplers do not see the timestep, so these units have one threshold and RPReLU for all buckets.
"""

import math

import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from ...layers import RPReLU
from .blocks import BlockOptions, BucketRPReLU, ChannelShortcut, register_block

PARTS = 4


class BIConv(nn.Module):
    """``act(binary conv(x + threshold)) + x``, thresholds and RPReLU by bucket of timesteps.

    ``[N, in, H, W]`` -> ``[N, out, H, W]``.

    Args:
        timed: whether there are buckets; without, ``temb`` may be ``None``.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions, kernel_size: int = 3, timed: bool = True):
        super().__init__()
        buckets = options.buckets if timed else 0
        self.temb_channels = options.temb_channels
        self.thresholds = nn.Parameter(torch.zeros(buckets, in_channels)) if buckets else None
        self.conv = options.conv(in_channels, out_channels, kernel_size, bias=False)
        self.act = BucketRPReLU(out_channels, options.temb_channels, buckets) if buckets else RPReLU(out_channels)
        self.shortcut = ChannelShortcut(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        if self.thresholds is None:
            return self.act(self.conv(x)) + self.shortcut(x)
        shift = (temb[:, self.temb_channels:] @ self.thresholds)[:, :, None, None]
        return self.act(self.conv(x + shift), temb) + self.shortcut(x)


class BIResnetBlock2D(nn.Module):
    """Two units ``BIConv(silu(norm(x)))``, the timestep added between them and the input behind them.

    ``fuse``: begin with :class:`ChannelShuffleFusion`, which halves the width.
    ``(x [N, in, H, W], temb)`` -> ``[N, out, H, W]``.
    """

    def __init__(self, resnet: ResnetBlock2D, options: BlockOptions, fuse: bool = False):
        super().__init__()
        inputs, outputs = resnet.in_channels, resnet.out_channels
        self.fusion = ChannelShuffleFusion(outputs, options) if fuse and inputs == 2 * outputs else None
        inputs = inputs if self.fusion is None else outputs
        self.norm1, self.norm2 = (nn.GroupNorm(math.gcd(options.groups, width), width, options.eps)
                                  for width in (inputs, outputs))
        self.conv1, self.conv2 = (BIConv(width, outputs, options) for width in (inputs, outputs))
        self.temb_channels = options.temb_channels
        self.time = nn.Linear(options.temb_channels, outputs)
        self.dropout = nn.Dropout(resnet.dropout.p)
        self.shortcut = ChannelShortcut(inputs, outputs)
        self.output_scale_factor = resnet.output_scale_factor

    def forward(self, hidden_states: Tensor, temb: Tensor, *args, **kwargs) -> Tensor:
        x = hidden_states if self.fusion is None else self.fusion(hidden_states, temb)
        out = self.conv1(F.silu(self.norm1(x)), temb)
        out = out + self.time(F.silu(temb[:, :self.temb_channels]))[:, :, None, None]
        out = self.conv2(self.dropout(F.silu(self.norm2(out))), temb)
        return (out + self.shortcut(x)) / self.output_scale_factor


class ChannelPreservingDown(nn.Module):
    """CP-Down: four binary units on a quarter of the channels each, added, pixel-unshuffled.

    ``[N, C, H, W]`` -> ``[N, C, H/2, W/2]``.
    """

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BIConv(channels // PARTS, channels // PARTS, options, timed=False) for _ in range(PARTS))

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        if hidden_states.shape[2] % 2 or hidden_states.shape[3] % 2:
            raise ValueError(f'CP-Down halves the image: its size must be even, got {tuple(hidden_states.shape[2:])}')
        parts = hidden_states.chunk(PARTS, 1)
        return F.pixel_unshuffle(sum(unit(part) for unit, part in zip(self.units, parts, strict=True)), 2)


class ChannelPreservingUp(nn.Module):
    """CP-Up: four binary units side by side, pixel-shuffled. ``[N, C, H, W]`` -> ``[N, C, 2H, 2W]``."""

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BIConv(channels, channels, options, timed=False) for _ in range(PARTS))

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        out = torch.stack([unit(hidden_states) for unit in self.units], 2)  # the four of a channel become its 2x2 pixels
        return F.pixel_shuffle(out.flatten(1, 2), 2)


class ChannelShuffleFusion(nn.Module):
    """CS-Fusion: each of two 1x1 units gets one channel of every pair of the decoder and the other one of every pair of the
    skip, and they are added. ``[N, 2C, H, W]`` -> ``[N, C, H, W]``.

    So both parts hold channels of both, and none needs a scale of its own.
    """

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BIConv(channels, channels, options, kernel_size=1) for _ in range(2))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        (even, odd), (skip_even, skip_odd) = (half.unflatten(1, (-1, 2)).unbind(2) for half in x.chunk(2, 1))
        first, second = self.units
        return first(torch.cat([odd, skip_even], 1), temb) + second(torch.cat([even, skip_odd], 1), temb)


@register_block('down', 'BIDiffSRDownBlock2D', 'DownBlock2D')
def down_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Residual blocks, then CP-Down."""
    host.resnets = nn.ModuleList(BIResnetBlock2D(resnet, options) for resnet in host.resnets)
    if host.downsamplers is not None:
        host.downsamplers = nn.ModuleList(ChannelPreservingDown(sampler.channels, options) for sampler in host.downsamplers)
    return host


@register_block('up', 'BIDiffSRUpBlock2D', 'UpBlock2D')
def up_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Residual blocks that begin with CS-Fusion where it halves the width, then CP-Up."""
    host.resnets = nn.ModuleList(BIResnetBlock2D(resnet, options, fuse=True) for resnet in host.resnets)
    if host.upsamplers is not None:
        host.upsamplers = nn.ModuleList(ChannelPreservingUp(sampler.channels, options) for sampler in host.upsamplers)
    return host
