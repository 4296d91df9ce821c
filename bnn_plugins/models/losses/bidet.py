"""BiDet: what binary detectors shall forget (Wang et al. 2020, arXiv 2003.03963, and its released code)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def information(features: Sequence[Tensor]) -> Tensor:
    r"""How much a head is told: :math:`\frac1K \sum_k \overline{F_k^2}` over the maps that it reads.

    The paper's information bottleneck is the divergence of the features from N(0, 1); this is its released form.
    """
    return torch.stack([feature.square().mean() for feature in features]).mean()


class SparseObjectPrior(nn.Module):
    r"""The entropy of surplus detections: few objects are in an image, so few detections shall keep the score.

    For each class of an image: detections of a score above ``score_threshold``, without what non-maximum suppression at
    ``iou_threshold`` removes, the best ``top_k``. Where these are more than the objects :math:`n` of that class, their scores
    :math:`p_i = s_i / \sum_j s_j` (the sum is a constant for the gradient) cost :math:`-\frac1n \sum_i p_i \log p_i`. Mean
    over the classes and images that have a surplus.

    Shapes: for each image ``scores`` ``[A, K]``, ``boxes`` ``[A, 4]`` or, for each class, ``[A, K, 4]``, ``labels``
    ``int64 [n]`` of its objects -> scalar.
    """

    def __init__(self, score_threshold: float = 0.03, iou_threshold: float = 0.45, top_k: int = 200):
        super().__init__()
        self.score_threshold, self.iou_threshold, self.top_k = score_threshold, iou_threshold, top_k

    def surplus(self, scores: Tensor, boxes: Tensor, count: int) -> Tensor | None:
        from mmcv.ops import nms
        inside = (scores > self.score_threshold).nonzero().flatten()
        if len(inside) <= count:
            return None
        kept = nms(boxes[inside].detach().float(), scores[inside].detach().float(), self.iou_threshold)[1][:self.top_k]
        return scores[inside[kept]] if len(kept) > count else None

    def forward(self, scores: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        losses = []
        for score, box, label in zip(scores, boxes, labels, strict=True):
            for kind, count in zip(*(t.tolist() for t in label.unique(return_counts=True)), strict=True):
                found = self.surplus(score[:, kind], box if box.ndim == 2 else box[:, kind], count)
                if found is not None:
                    share = found / found.detach().sum()
                    losses.append(-(share * share.log()).sum() / count)
        return torch.stack(losses).mean() if losses else sum(score.sum() for score in scores) * 0.0
