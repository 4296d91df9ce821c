"""Distillation losses of detectors: what the head says, and where student and teacher differ."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import MODELS
from .distillation import DistillationLoss, Outputs


@MODELS.register_module()
class ResponseLoss(DistillationLoss):
    r"""What the teacher's head says, for heads of sigmoids (RetinaNet, FCOS, the first stage of Faster R-CNN).

    With :math:`p = \sigma(z)` of student and teacher and :math:`w` the largest :math:`p^T` over the classes of an anchor,

    .. math:: \frac{1}{W} \sum_{a,k} |p^T_{ak} - p^S_{ak}|^\gamma\, \mathrm{BCE}(z^S_{ak}, p^T_{ak})
        + \frac{1}{4W} \sum_a w_a \lVert d^S_a - d^T_a \rVert_1, \qquad W = \sum_a w_a

    over all anchors of the batch. The first is the quality focal loss of Li et al. 2020, arXiv 2006.04388, with the teacher's
    probability as quality.

    Raises:
        ValueError: where the maps of student and teacher differ in shape.
    """

    def __init__(self, weight: float = 1.0, gamma: float = 2.0, box_weight: float = 1.0):
        super().__init__(weight)
        self.gamma, self.box_weight = gamma, box_weight

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        shapes = [[(tuple(s.shape), tuple(d.shape)) for s, d in zip(out.scores, out.deltas, strict=True)]
                  for out in (student, teacher)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise ValueError(f'ResponseLoss compares maps of scores and boxes in pairs, but the student has the shapes '
                             f'{shapes[0]} and the teacher {shapes[1]}')
        scores = boxes = total = 0
        for score, real, delta, aim in zip(student.scores, teacher.scores, student.deltas, teacher.deltas, strict=True):
            score, real, probability = score.float(), real.float(), real.float().sigmoid()
            focus = (probability - score.sigmoid()).abs().pow(self.gamma)
            scores = scores + (focus * F.binary_cross_entropy_with_logits(score, probability, reduction='none')).sum()
            anchors = delta.shape[1] // 4
            weight = probability.unflatten(1, (anchors, -1)).amax(2)  # [N, A, H, W]
            boxes = boxes + (weight * (delta - aim).abs().unflatten(1, (anchors, 4)).mean(2)).sum()
            total = total + weight.sum()
        return (scores + self.box_weight * boxes) / total.clamp(min=1e-6)


@MODELS.register_module()
class InstanceEntropyLoss(DistillationLoss):
    r"""IDa-Det: the proposals in which teacher and student differ most, and the entropy of their difference.

    A proposal of either network is, on the level on which it is nearest to 7 cells across, the patch of cells that it touches.

    1. Selection. Each channel of a patch becomes a distribution, :math:`\tilde x = \mathrm{softmax}(x / T)` over its cells.
       Their Mahalanobis distance is :math:`\varepsilon = \sum_c \sum_i (\tilde t_{ci} - \tilde s_{ci})^2 / \sigma_c^2`; the
       share ``gamma`` of the proposals of each image with the largest one is kept.
    2. Distillation. :math:`\overline{(t_{ci} - s_{ci})^2 / \sigma_c^2 + \log \sigma_c^2}`, mean over cells, channels and kept
       proposals.

    :math:`\sigma_c^2`: variance of channel c over the cells of both patches, plus ``eps``: the covariance of the paper, taken
    as diagonal, since it has fewer samples than rows. Its released code swaps height and width and marks bands of rows and
    columns instead of boxes; here it is the cells of the box, as the paper says.

    Source: Xu et al. 2022 (IDa-Det), ECCV, arXiv 2210.03477, eq. 6-12; gamma = 0.6 there.

    Args:
        gamma: share of the proposals, in (0, 1].
        temperature: of the distributions.
        eps: floor of the variances.

    Raises:
        ValueError: for another gamma; where features of student and teacher differ in shape.
    """

    needs_features = True
    needs_proposals = True

    def __init__(self, weight: float = 1.0, gamma: float = 0.6, temperature: float = 4.0, eps: float = 1e-2):
        super().__init__(weight)
        if not 0 < gamma <= 1:
            raise ValueError(f'gamma is the share of the proposals that are kept, in (0, 1], but got {gamma}')
        self.gamma, self.temperature, self.eps = gamma, temperature, eps

    def variance(self, one: Tensor, other: Tensor, eps: float) -> Tensor:
        """Of each channel over the cells of both ``[C, P]`` -> ``[C, 1]``."""
        return torch.cat([one, other], 1).var(1, unbiased=False, keepdim=True) + eps

    def discrepancy(self, one: Tensor, other: Tensor) -> Tensor:
        """Of two patches ``[C, P]`` -> scalar."""
        one, other = (x.div(self.temperature).softmax(1) for x in (one, other))
        # A softmax over P cells is about 1/P: the floor of its variance shrinks as its square.
        return ((one - other).square() / self.variance(one, other, self.eps / one.shape[1]**2)).sum()

    def patches(self, image: int, student: Outputs, teacher: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs ``[C, P]`` of all proposals of an image."""
        for box in torch.cat([student.proposals[image], teacher.proposals[image]]).tolist():
            cells = math.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 1.0))
            level = min(range(len(student.strides)), key=lambda i: abs(math.log(cells / student.strides[i] / 7)))
            one, other, stride = student.features[level][image], teacher.features[level][image], student.strides[level]
            rows, columns = (slice(min(max(math.floor(low / stride), 0), size - 1), max(math.ceil(high / stride), 1))
                             for low, high, size in ((box[1], box[3], one.shape[1]), (box[0], box[2], one.shape[2])))
            yield one[:, rows, columns].flatten(1).float(), other[:, rows, columns].flatten(1).float()

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        shapes = [[tuple(x.shape) for x in out.features] for out in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise ValueError(f'InstanceEntropyLoss compares cells of maps, but the student has the maps {shapes[0]} and the '
                             f'teacher {shapes[1]}')
        losses = []
        for image in range(len(student.features[0])):
            patches = list(self.patches(image, student, teacher))
            with torch.no_grad():
                far = sorted(range(len(patches)), key=lambda i: -self.discrepancy(*patches[i]).item())
            for i in far[:math.ceil(self.gamma * len(far))]:
                one, other = patches[i]
                variance = self.variance(one, other, self.eps)
                losses.append(((one - other).square() / variance + variance.log()).mean())
        return torch.stack(losses).mean() if losses else student.features[0].sum() * 0.0
