"""Parts of binary Transformers on maps of tokens, ``[B, H, W, C]``: the channels come last."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import RPReLU
from .expand import Tile, tile
from .linear import BinaryLinear


class TokenNorm(nn.Module):
    """Batch norm of every channel over all tokens: in BinaryViT wherever a Transformer has LayerNorm. ``[..., C]``, kept."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, -2)).view_as(x)


class LayerScale(nn.Module):
    """``scale_c x + shift_c`` with learned numbers, at the end of a branch; it starts as a multiplication by ``initial``.

    Source: Touvron et al. 2021 (CaiT), arXiv 2103.17239; with a shift in Le, Li 2023 (BinaryViT), arXiv 2306.16678.

    Shape: ``[..., C]``, kept.
    """

    def __init__(self, channels: int, initial: float = 0.1):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def match_features(x: Tensor, channels: int, features: int) -> Tensor:
    """BinaryViT's shortcut around a linear layer, ``[..., channels]`` -> ``[..., features]``: copies of all channels, one
    behind the other, where it grows; means of neighbouring channels where it shrinks."""
    if features < channels:
        return x.unflatten(-1, (features, -1)).mean(-1)
    return tile(x, features // channels, -1)


class TokenUnit(nn.Module):
    """``rprelu(norm(binary linear(x)) + shortcut(x))``: the real-valued stream goes around every sign.

    Args:
        in_features, out_features: one divides the other.
        method: see :func:`bnn_plugins.list_methods`.
        norm: ``channels -> module`` on ``[..., C]``.
        expand: of the linear layer; both widths are then the wide ones.
        tiles: how often the output of the linear layer is tiled in front of the norm.

    Shape: ``[..., in_features]`` -> ``[..., out_features]``. Source: BinaryViT, arXiv 2306.16678.

    Raises:
        ValueError: for widths of which none divides the other.
    """

    def __init__(self, in_features: int, out_features: int, method: str | dict, norm: Callable[[int], nn.Module] = TokenNorm,
                 expand: dict | None = None, tiles: int = 1):
        super().__init__()
        if out_features % in_features and in_features % out_features:
            raise ValueError(f'the shortcut of a token unit copies or averages channels: {in_features} -> {out_features} can '
                             'do neither')
        self.in_features, self.out_features = in_features, out_features
        self.linear = BinaryLinear(in_features, out_features // tiles, bias=False, method=method, expand=expand)
        self.tile = Tile(tiles, channel_dim=-1)
        self.norm = norm(out_features)
        self.act = RPReLU(out_features, channel_dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.tile(self.linear(x))) + match_features(x, self.in_features, self.out_features))


def average_pool(x: Tensor, size: int) -> Tensor:
    """Means of windows of ``size`` x ``size``, those at the border of what they hold. ``[B, H, W, C]`` -> ``[B, h, w, C]``."""
    if size == 1:
        return x
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), size, size, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1)


def spread_back(x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Every token over the window that it was averaged from: ``[B, h, w, C]`` -> ``[B, height, width, C]``."""
    if size == 1:
        return x
    return x.repeat_interleave(size, 1)[:, :height].repeat_interleave(size, 2)[:, :, :width]


class PoolBranches(nn.Module):
    """Means over columns and rows of 3 and of 5 tokens, each with a :class:`LayerScale` that starts at 0, added.

    Tokens outside of the map are zeros that count. ``[B, H, W, C]``, kept. Source: BinaryViT, arXiv 2306.16678.
    """

    def __init__(self, channels: int, sizes: tuple[int, ...] = (3, 5)):
        super().__init__()
        self.windows = [window for size in sizes for window in ((size, 1), (1, size))]
        self.scales = nn.ModuleList(LayerScale(channels, 0.0) for _ in self.windows)

    def forward(self, x: Tensor) -> Tensor:
        planes, out = x.permute(0, 3, 1, 2), 0
        for (height, width), scale in zip(self.windows, self.scales, strict=True):
            pooled = F.avg_pool2d(planes, (height, width), 1, (height // 2, width // 2))
            out = out + scale(pooled.permute(0, 2, 3, 1))
        return out


def to_windows(x: Tensor, size: int, shift: int) -> tuple[Tensor, Tensor | None]:
    """Cut a map into windows of ``size`` x ``size``; the grid begins ``shift`` tokens left of and above the map.

    Returns:
        ``[B * windows, size * size, C]``, and bool ``[B * windows, size * size]``: tokens that are in the map, ``None`` where
        all are.
    """
    batch, height, width, _ = x.shape
    right, bottom = -(width + shift) % size, -(height + shift) % size
    inside = None
    if shift or right or bottom:
        pad = (shift, right, shift, bottom)
        inside = F.pad(x.new_ones(1, height, width, 1), (0, 0, *pad)) > 0
        x = F.pad(x, (0, 0, *pad))
        inside = cut(inside, size).squeeze(-1).repeat(batch, 1)
    return cut(x, size), inside


def cut(x: Tensor, size: int) -> Tensor:
    """``[B, H, W, C]`` of whole windows -> ``[B * windows, size * size, C]``."""
    return x.unflatten(2, (-1, size)).unflatten(1, (-1, size)).transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(windows: Tensor, size: int, shift: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`to_windows`."""
    rows, columns = -(-(height + shift) // size), -(-(width + shift) // size)
    x = windows.unflatten(1, (size, size)).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x[:, shift:shift + height, shift:shift + width]
