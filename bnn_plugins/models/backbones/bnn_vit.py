"""BinaryViT's pyramid, and the same with windows."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments, unknown
from ...layers import BinaryConv2d, RPReLU
from ...layers.expand import tile
from ...layers.tokens import TokenNorm, average_pool
from ...layers.transformer import BinaryTransformerBlock
from ...registry import MODELS
from .base import check_out_indices

MERGES = ('binary', 'real')


def whole_patches(x: Tensor, size: int) -> Tensor:
    """``[B, C, H, W]``, the last rows and columns repeated up to multiples of ``size``."""
    right, bottom = -x.shape[3] % size, -x.shape[2] % size
    return F.pad(x, (0, right, 0, bottom), mode='replicate') if right or bottom else x


class PositionalEmbedding(nn.Module):
    """A learned offset for every token of a map of ``size`` x ``size``, interpolated for maps of another size.

    ``[B, H, W, C]``, kept.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, channels, size, size))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table
        if x.shape[1:3] != table.shape[2:]:
            table = F.interpolate(table, x.shape[1:3], mode='bicubic', align_corners=False)
        return x + table.permute(0, 2, 3, 1)


class PatchMerging(BaseModule):
    """Halves a map and doubles its width: ``rprelu(norm(binary 2x2 convolution(norm(x))) + copies of the mean)``.

    ``real``: a real convolution and no shortcut, BinaryViT's "some-fp". ``[B, H, W, C]`` -> ``[B, H/2, W/2, 2C]``, rounded up.
    """

    def __init__(self, channels: int, method: str | dict, real: bool):
        super().__init__()
        self.norm1 = TokenNorm(channels)
        kind = dict(kernel_size=2, stride=2, bias=False)
        self.conv = nn.Conv2d(channels, 2 * channels, **kind) if real else BinaryConv2d(channels, 2 * channels, method=method,
                                                                                       **kind)
        self.norm2 = TokenNorm(2 * channels)
        self.act = None if real else RPReLU(2 * channels, channel_dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        out = self.norm2(self.conv(whole_patches(x.permute(0, 3, 1, 2), 2)).permute(0, 2, 3, 1))
        return out if self.act is None else self.act(out + tile(average_pool(x, 2), 2, -1))


@MODELS.register_module()
class BNNViT(BaseModule):
    """BinaryViT: a pyramid of four stages, shortcuts around every binary linear layer, batch norms, pooled keys.

    Real are the patch embedding, positional embeddings, norms, scales and pool branches; all products of matrices of the
    blocks are binary, those of the attention, too. Images may have any size: positions are interpolated, keys of maps that are
    no multiple of the pool are means of what the last window holds, and incomplete patches are filled by repeating the border.
    Every output is normalised. Source: Le, Li 2023 (BinaryViT), arXiv 2306.16678, and its released code.

    Args:
        method: see :func:`bnn_plugins.list_methods`.
        probability: see :class:`bnn_plugins.layers.attention.BinaryAttention`.
        expand: ``dict(tau=2, spread=0.0)`` expands the feed-forward networks, see
            :class:`bnn_plugins.layers.transformer.BinaryFeedForward`.
        in_channels, out_indices, init_cfg: as in ``mmdet.ResNet``; by default the last map.
        base_channels: width of the first stage, doubled by each next one.
        depths, heads: blocks and heads of each stage.
        ratios: hidden width of its feed-forward networks over its width.
        pools: side of the windows of tokens that become one key.
        windows: side of the windows inside of which tokens attend to each other; 0 for the whole map. Every other block moves
            the grid by half a window (Swin, arXiv 2103.14030); tokens beyond the border are masked, nothing is rolled over.
        branches: sizes of the pool branches.
        patch_size: stride of the first map.
        image_size: that positions are made for.
        merge: ``'binary'`` or ``'real'`` (BinaryViT's "some-fp") convolutions between the stages.

    Raises:
        ValueError: for stages that are described by different numbers of depths, heads, ..., and for ``out_indices`` or
            ``merge`` that do not exist.
    """

    @checked_arguments
    def __init__(self, method: str | dict = 'binaryvit', probability: str | dict = 'elastic', expand: dict | None = None,
                 in_channels: int = 3, base_channels: int = 64, depths: Sequence[int] = (3, 4, 8, 4),
                 heads: Sequence[int] = (1, 2, 4, 8), ratios: Sequence[int] = (8, 8, 4, 4),
                 pools: Sequence[int] = (8, 4, 1, 1), windows: Sequence[int] = (0, 0, 0, 0),
                 branches: Sequence[int] = (3, 5), patch_size: int = 4, image_size: int = 224, merge: str = 'binary',
                 out_indices: Sequence[int] = (3,), init_cfg: dict | list | None = None):
        super().__init__(init_cfg or [dict(type='TruncNormal', layer='Linear', std=0.02), dict(type='Kaiming', layer='Conv2d'),
                                      dict(type='Constant', val=1, layer='_BatchNorm')])
        stages = dict(depths=depths, heads=heads, ratios=ratios, pools=pools, windows=windows)
        if len({len(values) for values in stages.values()}) > 1:
            said = ', '.join(f'{name}={tuple(values)}' for name, values in stages.items())
            raise ValueError(f'{type(self).__name__}: each stage needs one number of each, but got {said}')
        if merge not in MERGES:
            raise ValueError(unknown('merge', merge, MERGES))
        self.out_indices = check_out_indices(type(self).__name__, out_indices, len(depths))
        self.patch_size = patch_size
        self.widths = [base_channels * 2**stage for stage in range(len(depths))]
        self.feat_dim = self.widths[-1]
        self.patch_embed = nn.Conv2d(in_channels, base_channels, patch_size, patch_size)
        self.norm = TokenNorm(base_channels)
        size = -(-image_size // patch_size)
        self.positions, self.stages, self.merges = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index, (width, depth, head, ratio, pool, window) in enumerate(zip(self.widths, *stages.values(), strict=True)):
            if index:
                self.merges.append(PatchMerging(width // 2, method, merge == 'real'))
                size = -(-size // 2)
            self.positions.append(PositionalEmbedding(width, size))
            self.stages.append(nn.Sequential(*(
                BinaryTransformerBlock(width, head, ratio * width, pool, window, window // 2 * (block % 2), tuple(branches),
                                       method, probability, TokenNorm, expand) for block in range(depth))))
        self.out_norms = nn.ModuleList(TokenNorm(self.widths[index]) for index in self.out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[N, in_channels, H, W]`` -> one ``[N, C_i, H_i, W_i]`` for each of ``out_indices``; strides
        ``patch_size * 2**i``."""
        x = self.norm(self.patch_embed(whole_patches(x, self.patch_size)).permute(0, 2, 3, 1))
        maps = []
        for index, (position, stage) in enumerate(zip(self.positions, self.stages, strict=True)):
            x = stage(position(self.merges[index - 1](x) if index else x))
            maps.append(x)
        return tuple(norm(maps[index]).permute(0, 3, 1, 2)
                     for index, norm in zip(self.out_indices, self.out_norms, strict=True))


@MODELS.register_module()
class BNNSwin(BNNViT):
    """Swin-T's depths, widths and windows with the blocks of :class:`BNNViT`; its arguments.

    There is no relative position bias: scores stay integers, positions come from the embeddings and the pool branches.
    Source: Liu et al. 2021 (Swin), arXiv 2103.14030.
    """

    def __init__(self, *args, base_channels: int = 96, depths: Sequence[int] = (2, 2, 6, 2),
                 heads: Sequence[int] = (3, 6, 12, 24), ratios: Sequence[int] = (4, 4, 4, 4),
                 pools: Sequence[int] = (1, 1, 1, 1), windows: Sequence[int] = (7, 7, 7, 7), **kwargs):
        super().__init__(*args, base_channels=base_channels, depths=depths, heads=heads, ratios=ratios, pools=pools,
                         windows=windows, **kwargs)
