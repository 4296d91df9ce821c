"""Losses between the features of a binary UNet and those of its float teacher, block by block."""

import torch
from torch import Tensor, distributed, nn


class BlockFeatures:
    """Collects what the down, mid and up blocks of a UNet return; ``features`` holds those of the latest forward."""

    def __init__(self, unet: nn.Module):
        self.features: list[Tensor] = []
        blocks = [*unet.down_blocks, *([] if unet.mid_block is None else [unet.mid_block]), *unet.up_blocks]
        unet.register_forward_pre_hook(lambda *_: self.features.clear())
        for block in blocks:
            block.register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, args: tuple, out: Tensor | tuple) -> None:
        self.features.append(out[0] if isinstance(out, tuple) else out)


def space_patched_loss(student: list[Tensor], teacher: list[Tensor], patches: int = 4) -> Tensor:
    r"""BiDM's space patched distillation (Zheng et al. 2024, arXiv 2412.05926, eq. 11).

    Each feature ``[N, C, H, W]`` is cut into ``patches`` x ``patches`` patches :math:`P` (fewer where the map is smaller than
    two pixels a patch); with :math:`A = P P^T` over the width, the loss is the mean of
    :math:`\lVert A_s/\lVert A_s\rVert - A_t/\lVert A_t\rVert \rVert_2` over patches and features.

    Raises:
        ValueError: when student and teacher have features of different shapes.
    """
    losses = []
    for s, t in pairs(student, teacher):
        count = max(1, min(patches, min(s.shape[2:]) // 2))
        attention = [normalized_attention(x, count) for x in (s, t)]
        losses.append((attention[0] - attention[1]).flatten(2).norm(dim=2).mean())
    return torch.stack(losses).mean()


def normalized_attention(x: Tensor, count: int) -> Tensor:
    """``[N, C, H, W]`` to ``[N, count * count, C * h * h]``, each row of norm 1."""
    height, width = (size // count * count for size in x.shape[2:])
    p = x[:, :, :height, :width].unflatten(3, (count, -1)).unflatten(2, (count, -1))  # [N, C, count, h, count, w]
    p = p.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    attention = (p @ p.transpose(-1, -2)).flatten(2)
    return attention / attention.norm(dim=2, keepdim=True).clamp(min=1e-8)


class LowRankMimicking:
    r"""BinaryDM's low-rank representation mimicking (Zheng et al. 2024, arXiv 2404.05662, sec. 3.3).

    :math:`\mathrm{mean}\,\lVert F_s V - F_t V \rVert^2` with the first principal directions :math:`V` of the teacher's
    channels, computed once, from the first batch of all processes. ``directions`` belongs into a checkpoint.

    Args:
        rank: directions per feature as a share of its channels.
    """

    def __init__(self, rank: float = 0.25):
        self.rank = rank
        self.directions: list[Tensor] | None = None

    def __call__(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        rows = [(s.movedim(1, -1).flatten(0, -2), t.movedim(1, -1).flatten(0, -2)) for s, t in pairs(student, teacher)]
        if self.directions is None:
            # An eigenvalue problem of C x C, the same at every call and process: no random projections.
            self.directions = [principal_directions(t, max(2, int(t.shape[1] * self.rank))) for _, t in rows]
        return torch.stack([((s - t) @ v).square().mean() for (s, t), v in zip(rows, self.directions, strict=True)]).mean()


def principal_directions(rows: Tensor, rank: int) -> Tensor:
    """The ``rank`` leading eigenvectors of the covariance of ``[M, C]``, of all processes, ``[C, rank]``."""
    rows, dtype = rows.double(), rows.dtype
    sums = torch.cat([rows.sum(0), rows.new_full((1,), len(rows))])
    alone = not distributed.is_initialized()
    if not alone:
        distributed.all_reduce(sums)
    centred = rows - sums[:-1] / sums[-1]
    covariance = centred.T @ centred
    if not alone:
        distributed.all_reduce(covariance)
    directions = torch.linalg.eigh(covariance)[1][:, -rank:].to(dtype).contiguous()
    if not alone:
        distributed.broadcast(directions, 0)  # eigenvectors have two signs
    return directions


def pairs(student: list[Tensor], teacher: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    shapes = [[tuple(x.shape) for x in features] for features in (student, teacher)]
    if shapes[0] != shapes[1]:
        raise ValueError(f'student and teacher must have features of the same shapes, but got {shapes[0]} and {shapes[1]}: '
                         'use a teacher with the same block widths, or turn the feature losses off')
    return [(s, t.detach()) for s, t in zip(student, teacher, strict=True)]
