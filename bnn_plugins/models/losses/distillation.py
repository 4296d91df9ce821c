"""Losses between a student and its teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...registry import MODELS


class Outputs(NamedTuple):
    """What a network says about a batch.

    Attributes:
        logits: ``[N, K]``; ``None`` of a detector.
        features: of some of its layers, maps ``[N, C, H, W]`` or, of a Transformer, tokens ``[N, ..., C]`` and attention
            scores ``[N, heads, tokens, tokens]``.
        layers: these layers and what they have read.
        scores: of a detector: classification maps before the sigmoid, ``[N, A * K, H, W]`` of each level.
        deltas: regression maps ``[N, A * 4, H, W]``.
        proposals: boxes ``[n, 4]`` of each image that it proposes, in pixels of the input.
        strides: of the levels, in pixels.
    """

    logits: Tensor | None
    features: tuple[Tensor, ...] = ()
    layers: tuple[tuple[nn.Module, Tensor], ...] = ()
    scores: tuple[Tensor, ...] = ()
    deltas: tuple[Tensor, ...] = ()
    proposals: tuple[Tensor, ...] = ()
    strides: tuple[int, ...] = ()


class DistillationLoss(nn.Module):
    """Base class: ``(student, teacher) -> scalar``, times ``weight``. The teacher has no gradient.

    Attributes:
        needs_features (bool): compares features, pair by pair, from the first to the last.
        features (Sequence[int] | None): which of the pairs; ``None`` for all.
    """

    needs_features = False

    def __init__(self, weight: float = 1.0, features: Sequence[int] | None = None):
        super().__init__()
        self.weight, self.features = weight, features

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        raise NotImplementedError

    def forward(self, student: Outputs, teacher: Outputs) -> Tensor:
        if self.needs_features and not len(student.features) == len(teacher.features) > 0:
            raise ValueError(f'{type(self).__name__} compares maps in pairs: the backbone gives {len(student.features)} '
                             f'(out_indices) and the teacher {len(teacher.features)} (layers); give as many of both')
        if self.needs_features and self.features is not None:
            student, teacher = (out._replace(features=tuple(out.features[i] for i in self.features))
                                for out in (student, teacher))
        return self.weight * self.distance(student, teacher)


@MODELS.register_module()
class DistributionLoss(DistillationLoss):
    r"""Cross entropy with the teacher's distribution, :math:`-\frac1N\sum_{n,k} p^T_{nk} \log p^S_{nk}`.

    Source: Liu et al. 2020 (ReActNet), arXiv 2003.03488, eq. 6; it takes the place of the labels there.
    """

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        return F.cross_entropy(student.logits, teacher.logits.softmax(1))


@MODELS.register_module()
class KnowledgeDistillation(DistillationLoss):
    r"""Soft targets, :math:`T^2\,\mathrm{KL}(p^T(T) \,\|\, p^S(T))` at temperature ``T``, mean over images.

    Source: Hinton et al. 2015, arXiv 1503.02531.
    """

    def __init__(self, weight: float = 1.0, temperature: float = 4.0):
        super().__init__(weight)
        self.temperature = temperature

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        logs = [(out.logits / self.temperature).log_softmax(1) for out in (student, teacher)]
        return self.temperature**2 * F.kl_div(logs[0], logs[1], reduction='batchmean', log_target=True)


def pairs(student: Outputs, teacher: Outputs):
    """Maps side by side, the larger averaged down to the size of the smaller."""
    for one, other in zip(student.features, teacher.features, strict=True):
        size = [min(a, b) for a, b in zip(one.shape[2:], other.shape[2:], strict=True)]
        yield tuple(x if list(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (one, other))


@MODELS.register_module()
class AttentionLoss(DistillationLoss):
    r"""Squared distance of attention maps :math:`Q = \overline{F^2}` (mean over channels), each divided by its maximum.

    Mean over positions and images, summed over the pairs. Widths may differ. Source: Martinez et al. 2020 (Real-to-Binary),
    arXiv 2003.11535, eq. 2, normalised by the maximum as in larq's models; their weight is 30.
    """

    needs_features = True

    @staticmethod
    def attention(x: Tensor) -> Tensor:
        attention = x.square().mean(1)
        return attention / attention.amax((1, 2), keepdim=True).clamp(min=1e-12)

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        return sum(F.mse_loss(self.attention(one), self.attention(other)) for one, other in pairs(student, teacher))


@MODELS.register_module()
class FeatureLoss(DistillationLoss):
    """Squared distance of the maps, each channel of each image centred and brought to unit norm; summed over the pairs.

    Raises:
        ValueError: where a pair differs in the number of channels.
    """

    needs_features = True

    @staticmethod
    def normalised(x: Tensor) -> Tensor:
        x = x.flatten(2)
        return F.normalize(x - x.mean(2, keepdim=True), dim=2)

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        total = 0
        for one, other in pairs(student, teacher):
            if one.shape[1] != other.shape[1]:
                raise ValueError(f'FeatureLoss compares channel by channel, but the student has {one.shape[1]} and the '
                                 f'teacher {other.shape[1]}: use AttentionLoss, or layers of the same width')
            total = total + (self.normalised(one) - self.normalised(other)).square().sum(2).mean()
        return total
