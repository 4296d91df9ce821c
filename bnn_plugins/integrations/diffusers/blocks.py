"""Binary parts of UNet blocks, and the registry of blocks that diffusers does not have.

The order in a unit is norm, timestep-aware threshold, sign, binary convolution, RPReLU, shortcut: SiLU keeps signs, so it
would do nothing before one, and the real-valued stream goes around every sign (Chen et al. 2024, BI-DiffSR, arXiv 2406.05723).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D, FirDownsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import FirUpsample2D, Upsample2D
from torch import Tensor, nn

from ...binarize.lookup import unknown
from ...layers import BinaryConv2d, BinaryLinear, RPReLU
from ...layers.activations import _RPReLU


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one model share.

    Attributes:
        method: as in :class:`bnn_plugins.layers.BinaryConv2d`.
        pad_value: as there.
        expand: as there.
        temb_channels: channels of the timestep embedding.
        buckets: number of buckets of timesteps, 0 for none; their one-hot code follows the embedding.
        groups: groups of the norms, at most.
        eps: of the norms.
    """

    method: str | dict
    pad_value: int
    expand: dict | None
    temb_channels: int
    buckets: int
    groups: int
    eps: float

    def conv(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1,
             bias: bool = True) -> BinaryConv2d:
        return BinaryConv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=bias, method=self.method,
                            pad_value=self.pad_value, expand=self.expand)

    def linear(self, layer: nn.Linear) -> BinaryLinear:
        return BinaryLinear(layer.in_features, layer.out_features, layer.bias is not None, method=self.method,
                            expand=self.expand)


class TimeShift(nn.Module):
    """A shift per channel and sample, from the timestep: put before a sign it makes the sign's threshold timestep-aware.

    ``Linear(silu(embedding))``, as diffusers injects the timestep, plus one learned row per bucket of timesteps (BI-DiffSR).
    Buckets are looked up per sample (BI-DiffSR's released code takes that of sample 0 for the batch).

    Shape: ``[N, temb_channels + buckets]`` -> ``[N, C, 1, 1]``.
    """

    def __init__(self, temb_channels: int, buckets: int, channels: int):
        super().__init__()
        self.temb_channels = temb_channels
        self.proj = nn.Linear(temb_channels, channels)
        self.table = nn.Parameter(torch.zeros(buckets, channels)) if buckets else None

    def forward(self, temb: Tensor) -> Tensor:
        shift = self.proj(F.silu(temb[:, :self.temb_channels]))
        if self.table is not None:
            shift = shift + temb[:, self.temb_channels:] @ self.table
        return shift[:, :, None, None]


class BucketRPReLU(nn.Module):
    """:class:`RPReLU` with parameters of its own for every bucket of timesteps. ``[N, C, H, W]``, kept."""

    def __init__(self, channels: int, temb_channels: int, buckets: int):
        super().__init__()
        self.temb_channels = temb_channels
        self.gamma = nn.Parameter(torch.zeros(buckets, channels))
        self.slope = nn.Parameter(torch.full((buckets, channels), 0.25))
        self.zeta = nn.Parameter(torch.zeros(buckets, channels))

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        gamma, slope, zeta = ((temb[:, self.temb_channels:] @ table)[:, :, None, None]
                              for table in (self.gamma, self.slope, self.zeta))
        return _RPReLU.apply(x, gamma, slope, zeta)


class ChannelShortcut(nn.Module):
    """The real-valued stream between two widths: identity, tiled, averaged in groups, or a real 1x1 convolution.

    ``[N, in_channels, H, W]`` -> ``[N, out_channels, H, W]``.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        plain = in_channels % out_channels == 0 or out_channels % in_channels == 0
        self.conv_shortcut = None if plain else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv_shortcut is not None:
            return self.conv_shortcut(x)
        if self.in_channels > self.out_channels:
            return x.unflatten(1, (-1, self.out_channels)).mean(1)
        return x if self.in_channels == self.out_channels else x.repeat(1, self.out_channels // self.in_channels, 1, 1)


class BinaryUnit2D(nn.Module):
    """``act(binary conv(norm(x) + shift(t))) + shortcut(x)``; ``[N, in, H, W]`` -> ``[N, out, H', W']``.

    Args:
        stride: of the convolution; the shortcut is average-pooled.
        dropout: probability, before the sign.
        timed: whether the timestep shifts the threshold; without, ``temb`` may be ``None``.
    """

    def __init__(self, in_channels: int, out_channels: int, options: BlockOptions, stride: int = 1, dropout: float = 0.0,
                 timed: bool = True):
        super().__init__()
        self.stride = stride
        self.norm = nn.GroupNorm(math.gcd(options.groups, in_channels), in_channels, options.eps)
        self.shift = TimeShift(options.temb_channels, options.buckets, in_channels) if timed else None
        self.dropout = nn.Dropout(dropout)
        self.conv = options.conv(in_channels, out_channels, stride=stride)
        self.act = (BucketRPReLU(out_channels, options.temb_channels, options.buckets) if options.buckets and timed
                    else RPReLU(out_channels))
        self.shortcut = ChannelShortcut(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None) -> Tensor:
        out = self.norm(x)
        if self.shift is not None:
            out = out + self.shift(temb)
        out = self.conv(self.dropout(out))
        out = self.act(out, temb) if isinstance(self.act, BucketRPReLU) else self.act(out)
        if self.stride != 1:
            x = F.avg_pool2d(x, self.stride, self.stride, ceil_mode=True, count_include_pad=False)
        return out + self.shortcut(x)


class BinaryResnetBlock2D(nn.Module):
    """Two binary units in the place of ``ResnetBlock2D``: ``(x [N, in, H, W], temb)`` -> ``[N, out, H', W']``."""

    def __init__(self, resnet: ResnetBlock2D, options: BlockOptions):
        super().__init__()
        if resnet.time_emb_proj is None:
            raise ValueError('a binary residual block needs a timestep embedding: temb_channels must not be None')
        self.in_channels, self.out_channels = resnet.in_channels, resnet.out_channels
        self.up, self.down = resnet.up, resnet.down
        self.output_scale_factor = resnet.output_scale_factor
        dropout = resnet.dropout.p
        self.unit1 = BinaryUnit2D(self.in_channels, self.out_channels, options)
        self.unit2 = BinaryUnit2D(self.out_channels, self.out_channels, options, dropout=dropout)

    def forward(self, hidden_states: Tensor, temb: Tensor, *args, **kwargs) -> Tensor:
        if self.down:
            hidden_states = F.avg_pool2d(hidden_states, 2)
        if self.up:
            hidden_states = F.interpolate(hidden_states, scale_factor=2.0, mode='nearest')
        return self.unit2(self.unit1(hidden_states, temb), temb) / self.output_scale_factor


class BinaryDownsample2D(nn.Module):
    """A binary unit of stride 2. ``[N, C, H, W]`` -> ``[N, C, H/2, W/2]`` (rounded up)."""

    def __init__(self, sampler: Downsample2D, options: BlockOptions):
        super().__init__()
        self.channels = sampler.channels
        self.unit = BinaryUnit2D(sampler.channels, sampler.out_channels, options, stride=2, timed=False)

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return self.unit(hidden_states, None)


class BinaryUpsample2D(nn.Module):
    """Nearest neighbours and a binary unit. ``[N, C, H, W]`` -> ``[N, C, 2H, 2W]``."""

    def __init__(self, sampler: Upsample2D, options: BlockOptions):
        super().__init__()
        self.channels = sampler.channels
        self.unit = BinaryUnit2D(sampler.channels, sampler.out_channels, options, timed=False)

    def forward(self, hidden_states: Tensor, output_size: int | None = None, *args, **kwargs) -> Tensor:
        size = dict(scale_factor=2.0) if output_size is None else dict(size=output_size)
        return self.unit(F.interpolate(hidden_states, mode='nearest', **size), None)


def binarize_attention_(attention: Attention, options: BlockOptions) -> Attention:
    """The four projections become binary, in place; scores, softmax and the sum over values stay float."""
    for name in ('to_q', 'to_k', 'to_v'):
        setattr(attention, name, options.linear(getattr(attention, name)))
    attention.to_out[0] = options.linear(attention.to_out[0])
    return attention


PARTS: dict[type, Callable[[nn.Module, BlockOptions], nn.Module]] = {
    ResnetBlock2D: BinaryResnetBlock2D, Downsample2D: BinaryDownsample2D, Upsample2D: BinaryUpsample2D,
    Attention: binarize_attention_,
}
# Of the second stream of the skip blocks, which is an image.
REAL_PARTS = (FirDownsample2D, FirUpsample2D, nn.Conv2d, nn.GroupNorm, nn.SiLU)


def binarize_block_(block: nn.Module, options: BlockOptions) -> nn.Module:
    """Replace the parts of a block of diffusers by binary ones, in place: ``BinaryX`` is ``X`` after this.

    Raises:
        ValueError: for a block with parts that have no binary counterpart.
    """
    def binary(part: nn.Module | None) -> nn.Module | None:
        if part is None or isinstance(part, REAL_PARTS):
            return part
        kind = next((kind for kind in PARTS if isinstance(part, kind)), None)
        if kind is None:
            raise ValueError(f'{type(block).__name__} has {type(part).__name__}, which has no binary counterpart: use '
                             'binarize_, or a block with residual, attention and sampling layers only')
        return PARTS[kind](part, options)

    for name, child in list(block.named_children()):
        if isinstance(child, nn.ModuleList):
            for index, part in enumerate(child):
                child[index] = binary(part)
        else:
            setattr(block, name, binary(child))
    return block


# kind ('down', 'mid', 'up') -> name -> (name of the block of diffusers whose place it takes, builder from that block).
BLOCKS: dict[str, dict[str, tuple[str, Callable[[nn.Module, BlockOptions], nn.Module]]]] = {'down': {}, 'mid': {}, 'up': {}}


def register_block(kind: str, name: str, stands_for: str):
    """Decorator: a builder ``(host block, options) -> block`` under a name that ``BinaryUNet2DModel`` takes.

    Args:
        kind: ``'down'``, ``'mid'`` or ``'up'``.
        name: for ``down_block_types`` and the like.
        stands_for: the block of diffusers that is built first and tells the widths (``'DownBlock2D'``).

    Raises:
        ValueError: for an unknown kind or a name that is taken.
    """
    if kind not in BLOCKS:
        raise ValueError(unknown('kind of block', kind, BLOCKS))

    def register(builder):
        if name in BLOCKS[kind]:
            raise ValueError(f'the {kind} block {name!r} is registered already')
        BLOCKS[kind][name] = (stands_for, builder)
        return builder

    return register
