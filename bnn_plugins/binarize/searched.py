"""Binary weights that are searched for."""

import torch
from torch import Tensor, nn

from .estimators import TanhSign
from .weights import WeightBinarizer

__all__ = ['SearchedWeight']


class SearchedWeight(WeightBinarizer):
    r"""Differentiable binarization search: each weight is the more probable one of -1 and +1.

    With a score :math:`\beta^-, \beta^+` of each choice, :math:`p = \mathrm{softmax}(\beta^-, \beta^+)`. Only the difference
    of the scores counts: it is the latent, :math:`W = \beta^+ - \beta^-`.

    Forward: :math:`W_b = \alpha_o\,\mathrm{arg\,max}_{o \in \{-1, +1\}} p^o = \alpha_o\,\mathrm{sign}(W)` with a learned
    :math:`\alpha`, whose size is used.

    Gradient: that of the expected choice, :math:`p^+ - p^- = \tanh(W / 2)`: :math:`dW = 2\,\alpha g\,p^+ p^-`. It never
    vanishes where both choices are still likely, and has no clip.
    Source: Xu et al. 2021 (LWS-Det), CVPR, after the search of DARTS, arXiv 1806.09055. The paper starts from scores of
    N(0, 1); from a trained float detector, the latents are its weights.
    """

    def __init__(self, out_channels: int, fan_in: int):
        super().__init__()
        self.estimator = TanhSign(0.5)
        self.alpha = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.estimator(weight), self.alpha.abs()
