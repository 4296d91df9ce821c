"""Boxes: overlaps, NMS, soft-NMS. Boxes are (x1, y1, x2, y2) in pixels; a side is ``x2 - x1 + offset`` long.

NMS: greedy suppression by falling score. Soft-NMS: Bodla et al., Improving Object Detection With One Line of Code,
ICCV 2017, arXiv:1704.04503. The IoU is computed in the boxes' own precision, in mmcv's order of operations, so a pair
at the threshold falls to the same side as there; float16 and bfloat16 are computed in float32.
"""

import numpy as np
import torch
from torch import Tensor

from .dtypes import wide

_BLOCK = 128  # boxes resolved at once by nms: 128 x 3000 overlaps in float32 are 1.5 MB


def _sides(boxes: Tensor, offset: int) -> tuple[Tensor, ...]:
    """(..., 4) -> x1, y1, x2, y2, area, each (...)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)


def _intersection(a: tuple[Tensor, ...], b: tuple[Tensor, ...], offset: int) -> Tensor:
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0]))
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1]))
    if offset:
        width, height = width.add_(offset), height.add_(offset)
    return width.clamp_(min=0).mul_(height.clamp_(min=0))


def _iou(a: tuple[Tensor, ...], b: tuple[Tensor, ...], offset: int) -> Tensor:
    """Broadcast IoU of what :func:`_sides` returned. 0 / 0 is NaN, and NaN is above no threshold: such boxes stay."""
    inter = _intersection(a, b, offset)
    return inter / (a[4] + b[4] - inter)


@torch.no_grad()
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """IoU (``mode=0``) or intersection over the area of the first box (``mode=1``).

    Args:
        bboxes1: (M, 4). bboxes2: (N, 4); M == N when aligned.
        ious: written: (M, N), or (M,) when aligned.
    """
    a, b = _sides(bboxes1 if aligned else bboxes1[:, None], offset), _sides(bboxes2, offset)
    inter = _intersection(a, b, offset)
    ious.copy_(inter / (a[4] + b[4] - inter if mode == 0 else a[4]))


def _greedy(beats: Tensor) -> Tensor:
    """Which of the boxes in falling order of score survive: those that no survivor before them beats.

    That rule has one solution, and iterating it reaches the solution: after t rounds the first t boxes are settled.
    In practice two to five rounds do, the length of the longest chain of suppressions.

    Args:
        beats: (n, n) bool, ``beats[i, j]``: box i suppresses box j if i itself survives. Only i < j counts.

    Returns:
        Tensor: (n,) bool.
    """
    beats = beats.triu(1)
    keep, beats = ~beats.any(0), beats.float()
    while True:
        settled = keep.float() @ beats == 0  # counted by a product: several times faster than any()
        if torch.equal(settled, keep):
            return keep
        keep = settled


@torch.no_grad()
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no kept box of a higher score overlaps by IoU > ``iou_threshold``.

    Args:
        boxes: (N, 4).
        scores: (N,).
        iou_threshold: in [0, 1].
        offset: 0 or 1, added to widths and heights.

    Returns:
        Tensor: (K,) int64, falling scores; among equal scores the box that comes first goes first.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    order = scores.sort(descending=True, stable=True).indices
    sides = torch.stack(_sides(wide(boxes)[order], offset))  # (5, N)

    kept, left = [], torch.arange(len(order), device=boxes.device)
    while left.numel():
        head, left = left[:_BLOCK], left[_BLOCK:]
        mine = sides[:, head, None]
        survives = _greedy(_iou(mine, sides[:, None, head], offset) > iou_threshold)
        kept.append(head[survives])
        if left.numel():
            beaten = (_iou(mine[:, survives], sides[:, None, left], offset) > iou_threshold).float()
            left = left[beaten.new_ones(len(beaten)) @ beaten == 0]
    return order[torch.cat(kept)]


@torch.no_grad()
def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """NMS that says which box suppressed which. Here IoU >= ``iou_threshold`` suppresses, and there is no offset.

    Args:
        dets: (N, 5), boxes and scores.

    Returns:
        list[list[int]]: per kept box, in falling scores: its index, then the indices that it suppressed.
    """
    order = dets[:, 4].sort(descending=True, stable=True).indices
    sides = torch.stack(_sides(wide(dets[:, :4]), 0))
    groups = []
    while order.numel():
        first, order = order[:1], order[1:]
        match = _iou(sides[:, first], sides[:, order], 0) >= iou_threshold
        groups.append(torch.cat((first, order[match])).tolist())
        order = order[~match]
    return groups


@torch.no_grad()
def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS: the best box is taken, the scores s of the others decay by its overlap o with them, and so on.

    ==========  =================================================  ======================
    ``method``  decay                                              paper
    ==========  =================================================  ======================
    0 naive     s = 0 where o >= ``iou_threshold``                 eq. 1 (NMS)
    1 linear    s = s * (1 - o) where o >= ``iou_threshold``       eq. 2
    2 gaussian  s = s * exp(-o^2 / ``sigma``)                      eq. 3
    ==========  =================================================  ======================

    A box that decays below ``min_score`` leaves; the first box is taken whatever its score. Among equal scores the
    first of mmcv's working order is taken, which is reproduced: the taken box swaps places with the front of the rest,
    and a box that leaves is replaced by the last one that stays. Two boxes without area have o = 0 / 0: the gaussian decay
    makes such a score NaN, as in mmcv, and no NaN is taken before its turn at the front.

    Args:
        boxes: (N, 4) on the CPU.
        scores: (N,).
        dets: (N, 5) on the CPU; the first K rows are written: box and decayed score.

    Returns:
        Tensor: (K,) int64, the input index of every row of ``dets``.
    """
    # One row per quantity, one column per box: x1, y1, x2, y2, area, score. Thousands of tiny steps: NumPy's are cheaper.
    rows = torch.stack((*_sides(wide(boxes), offset), scores.to(wide(boxes).dtype))).numpy()
    inds = np.arange(boxes.size(0))
    end, i = boxes.size(0), 0
    with np.errstate(invalid='ignore', divide='ignore'):
        while i < end:
            best = i if np.isnan(rows[5, i]) else i + int(np.nanargmax(rows[5, i:end]))
            rows[:, [i, best]] = rows[:, [best, i]]
            inds[[i, best]] = inds[[best, i]]
            x1, y1, x2, y2, area, score = rows[:, i + 1 : end]
            width = np.maximum(np.minimum(rows[2, i], x2) - np.maximum(rows[0, i], x1) + offset, 0)
            height = np.maximum(np.minimum(rows[3, i], y2) - np.maximum(rows[1, i], y1) + offset, 0)
            inter = width * height
            iou = inter / (rows[4, i] + area - inter)
            if method == 2:
                score *= np.exp(-(iou * iou) / sigma)
            else:
                score *= np.where(iou >= iou_threshold, 1 - iou if method == 1 else 0, 1)

            leaves = score < min_score
            i += 1
            stay = end - i - int(leaves.sum())
            holes = i + leaves[:stay].nonzero()[0]
            fill = i + stay + (~leaves[stay:]).nonzero()[0][::-1]
            rows[:, holes], inds[holes] = rows[:, fill], inds[fill]
            end = i + stay
    dets[:end] = torch.from_numpy(rows[[0, 1, 2, 3, 5], :end].T)
    return torch.from_numpy(inds[:end])
