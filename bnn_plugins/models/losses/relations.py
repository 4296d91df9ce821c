"""Distillation losses of Transformers: hidden states, attention scores, relations between tokens."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ...binarize import unknown
from ...registry import MODELS
from .distillation import DistillationLoss, Outputs

LAYOUTS = ('last', 'first')
# Scores of masked keys are below this.
MASKED = -100.0


def same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f'{name} compares number by number, but the student has {tuple(student.shape)} and the teacher '
                         f'{tuple(teacher.shape)}: choose layers of the same shape, or use DMD, for which widths may differ')


@MODELS.register_module()
class HiddenMSE(DistillationLoss):
    r"""Mean squared error of hidden states, :math:`\sum_l \overline{(h_l^S - h_l^T)^2}`; any shape, the same for both.

    Sources: TinyBERT, arXiv 1909.10351, eq. 8; BiT, arXiv 2205.13016, which trains with it and the logits alone.

    Raises:
        ValueError: where the shapes of a pair differ.
    """

    needs_features = True

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        total = 0
        for one, other in zip(student.features, teacher.features, strict=True):
            if one.ndim == 4 and other.ndim == 3:  # a map of tokens, [B, H, W, C], beside a list of them
                one = one.flatten(1, 2)
            same_shape('HiddenMSE', one, other)
            total = total + F.mse_loss(one, other.to(one.dtype))
        return total


@MODELS.register_module()
class AttnScoreMSE(DistillationLoss):
    r"""Mean squared error of attention scores before the softmax, ``[B, heads, N, M]``, summed over the pairs.

    Scores of at most -100 stand for masked keys and are set to zero in both. The scores of a binary attention are the output
    of its submodule ``logits``. Source: TinyBERT, arXiv 1909.10351, eq. 7, as in the released code of BiBERT.

    Raises:
        ValueError: where the shapes of a pair differ.
    """

    needs_features = True

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        total = 0
        for one, other in zip(student.features, teacher.features, strict=True):
            same_shape('AttnScoreMSE', one, other)
            one, other = (x.masked_fill(x <= MASKED, 0) for x in (one, other))
            total = total + F.mse_loss(one, other.to(one.dtype))
        return total


@MODELS.register_module()
class DMD(DistillationLoss):
    r"""Direction-matching distillation: patterns of similarity between tokens, for queries, keys, values, hidden states.

    With :math:`R = X X^T / \sqrt d` over the tokens of each head,
    :math:`\sum_l \left\lVert \frac{R_S}{\lVert R_S\rVert_F} - \frac{R_T}{\lVert R_T\rVert_F} \right\rVert_2`. Norms are those
    of each sample, and the result their mean, so that it does not depend on the size of the batch; ``per_sample=False``: of
    the whole batch, as in the released code. Widths may differ. Source: Qin et al. 2022 (BiBERT), arXiv 2203.06390.

    Args:
        layout: ``'last'``: features are ``[B, tokens..., C]``; ``'first'``: maps ``[B, C, H, W]``.
        heads: that both divide their channels among.

    Raises:
        ValueError: for another layout, and where the numbers of tokens of a pair differ.
    """

    needs_features = True

    def __init__(self, weight: float = 1.0, features: Sequence[int] | None = None, layout: str = 'last', heads: int = 1,
                 per_sample: bool = True):
        super().__init__(weight, features)
        if layout not in LAYOUTS:
            raise ValueError(unknown('layout', layout, LAYOUTS))
        self.layout, self.heads, self.per_sample = layout, heads, per_sample

    def relations(self, x: Tensor) -> Tensor:
        """``[B, heads * tokens * tokens]``, or one row for the whole batch, of norm 1."""
        x = x.flatten(2).mT if self.layout == 'first' else x.flatten(1, -2)
        x = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        relations = (x @ x.mT / x.shape[-1] ** 0.5).flatten(1)
        return F.normalize(relations if self.per_sample else relations.reshape(1, -1), dim=1)

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        total = 0
        for one, other in zip(student.features, teacher.features, strict=True):
            one, other = self.relations(one), self.relations(other)
            if one.shape != other.shape:
                raise ValueError('DMD compares tokens in pairs, but student and teacher have different numbers of them: '
                                 'choose layers of the same resolution')
            total = total + (one - other.to(one.dtype)).norm(dim=1).mean()
        return total
