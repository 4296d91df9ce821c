"""Losses on labels: ``(logits [N, K], labels [N]) -> scalar``."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS


@MODELS.register_module()
class CrossEntropy(nn.Module):
    """Cross entropy; ``label_smoothing`` moves that share of the target to all classes alike."""

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@MODELS.register_module()
class SquaredHinge(nn.Module):
    r"""Mean over images and classes of :math:`\max(0, 1 - y_k z_k)^2` with :math:`y_k = \pm 1`.

    Source: BinaryConnect and BinaryNet (arXiv 1511.00363, 1602.02830).
    """

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        signs = 2 * F.one_hot(labels, logits.shape[1]).to(logits.dtype) - 1
        return (1 - signs * logits).clamp(min=0).square().mean()
