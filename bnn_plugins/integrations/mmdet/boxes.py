"""Boxes of two models on the same images, matched."""

from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor


@dataclass
class MatchedBoxes:
    """The result of :func:`match_boxes`.

    Attributes:
        first, second: how many boxes each has.
        matched: pairs of the same class that overlap.
        score: largest difference of their scores.
        corner: largest difference of a coordinate, in pixels.
    """

    first: int = 0
    second: int = 0
    matched: int = 0
    score: float = 0.0
    corner: float = 0.0

    def __str__(self) -> str:
        return (f'boxes matched {self.matched:,} of {max(self.first, self.second):,}, largest matched difference '
                f'{self.score:.2g} of a score and {self.corner:.2g} pixels')


def match_boxes(first: list[dict], second: list[dict], iou: float = 0.5) -> MatchedBoxes:
    """Match the detections of two models, image by image.

    Each box of the first, the surest one before the others, takes the box of the second that overlaps it most, of those of its
    class that are left.

    Args:
        first, second: for each image mmdet's sample as a dict, with ``pred_instances``: ``bboxes`` float ``[N, 4]``,
            ``labels`` int ``[N]``, ``scores`` float ``[N]``.
        iou: intersection over union, from which on two boxes are a pair.

    Raises:
        ValueError: for another number of images.

    Example:
        >>> found = [dict(pred_instances=dict(bboxes=torch.tensor([[0., 0., 8., 8.]]), labels=torch.tensor([0]),
        ...                                   scores=torch.tensor([0.75])))]
        >>> match_boxes(found, found).matched
        1
    """
    if len(first) != len(second):
        raise ValueError(f'match_boxes takes the same images twice, but got {len(first)} and {len(second)}')
    result = MatchedBoxes()
    for one, other in zip(first, second, strict=True):
        one, other = one['pred_instances'], other['pred_instances']
        pairs = pairs_of(one, other, iou)
        result.first, result.second = result.first + len(one['scores']), result.second + len(other['scores'])
        result.matched += len(pairs)
        for i, j in pairs:
            result.score = max(result.score, abs(float(one['scores'][i] - other['scores'][j])))
            result.corner = max(result.corner, float((one['bboxes'][i] - other['bboxes'][j]).abs().max()))
    return result


def pairs_of(one: dict[str, Tensor], other: dict[str, Tensor], iou: float) -> list[tuple[int, int]]:
    overlaps = bbox_overlaps(one['bboxes'].float(), other['bboxes'].float())
    overlaps = overlaps.masked_fill(one['labels'][:, None] != other['labels'], 0)
    pairs = []
    for i in one['scores'].argsort(descending=True).tolist():
        if overlaps.shape[1] and float(overlaps[i].max()) >= iou:
            j = int(torch.argmax(overlaps[i]))
            pairs.append((i, j))
            overlaps[:, j] = 0
    return pairs
