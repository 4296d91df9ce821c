"""BI-DiffSR's sampling and fusion, in which no sign ever changes the width (Chen et al. 2024, arXiv 2406.05723, sec. 3.2).

The paper's network doubles the width where it halves the image. Blocks of diffusers keep it there (the width changes in the
first residual layer of the next block), so here a quarter of the channels is unshuffled, and four times as many shuffled.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import BinaryResnetBlock2D, BinaryUnit2D, BlockOptions, register_block

PARTS = 4


class ChannelPreservingDown(nn.Module):
    """CP-Down: four binary units on a quarter of the channels each, added, pixel-unshuffled.

    ``[N, C, H, W]`` -> ``[N, C, H/2, W/2]``.
    """

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BinaryUnit2D(channels // PARTS, channels // PARTS, options, timed=False)
                                   for _ in range(PARTS))

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        if hidden_states.shape[2] % 2 or hidden_states.shape[3] % 2:
            raise ValueError(f'CP-Down halves the image: its size must be even, got {tuple(hidden_states.shape[2:])}')
        parts = hidden_states.chunk(PARTS, 1)
        return F.pixel_unshuffle(sum(unit(part, None) for unit, part in zip(self.units, parts, strict=True)), 2)


class ChannelPreservingUp(nn.Module):
    """CP-Up: four binary units side by side, pixel-shuffled. ``[N, C, H, W]`` -> ``[N, C, 2H, 2W]``."""

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BinaryUnit2D(channels, channels, options, timed=False) for _ in range(PARTS))

    def forward(self, hidden_states: Tensor, output_size=None, *args, **kwargs) -> Tensor:
        out = torch.stack([unit(hidden_states, None) for unit in self.units], 2)  # the four of a channel become its 2x2 pixels
        return F.pixel_shuffle(out.flatten(1, 2), 2)


class ChannelShuffleFusion(nn.Module):
    """CS-Fusion: the decoder's and the skip's channels interleaved, a binary unit for each part, added.

    ``[N, parts * C, H, W]`` -> ``[N, C, H, W]``; all parts then hold channels of both, so none has a scale of its own.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions):
        super().__init__()
        self.units = nn.ModuleList(BinaryUnit2D(out_channels, out_channels, options)
                                   for _ in range(in_channels // out_channels))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        parts = F.channel_shuffle(x, len(self.units)).chunk(len(self.units), 1)
        return sum(unit(part, temb) for unit, part in zip(self.units, parts, strict=True)) / len(self.units)


@register_block('down', 'BIDiffSRDownBlock2D', 'DownBlock2D')
def down_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Residual layers, then CP-Down."""
    host.resnets = nn.ModuleList(BinaryResnetBlock2D(resnet, options) for resnet in host.resnets)
    if host.downsamplers is not None:
        host.downsamplers = nn.ModuleList(ChannelPreservingDown(sampler.channels, options) for sampler in host.downsamplers)
    return host


@register_block('up', 'BIDiffSRUpBlock2D', 'UpBlock2D')
def up_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Residual layers that begin with CS-Fusion where the widths allow it, then CP-Up."""
    resnets = []
    for resnet in host.resnets:
        binary = BinaryResnetBlock2D(resnet, options)
        if binary.in_channels % binary.out_channels == 0 and binary.in_channels > binary.out_channels:
            binary.unit1 = ChannelShuffleFusion(binary.in_channels, binary.out_channels, options)
        resnets.append(binary)
    host.resnets = nn.ModuleList(resnets)
    if host.upsamplers is not None:
        host.upsamplers = nn.ModuleList(ChannelPreservingUp(sampler.channels, options) for sampler in host.upsamplers)
    return host
