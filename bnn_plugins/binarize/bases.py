"""BinaryDM's binarizers: weights of two binary bases, activations of a few bits with a learned step."""

import torch
from torch import Tensor, nn

from .activations import ActivationBinarizer, round_ste
from .elastic import positive
from .estimators import build_estimator
from .weights import WeightBinarizer, per_filter

__all__ = ['BasisWeight', 'LSQActivation']


class BasisWeight(WeightBinarizer):
    r"""Weights that are sums of binary bases, each with its own learned scale per filter.

    Forward: :math:`W_b = \sigma_1\,b_1 + \sigma_2\,b_2` with :math:`b_1 = \mathrm{sign}(W)`,
    :math:`b_2 = \mathrm{sign}(W - \sigma_1 b_1)`; levels are ``[bases * O, ...]``, all filters of the first basis before those
    of the second, the scale is ``[bases * O]``, and the layer adds the scaled accumulators of the bases.
    :math:`\sigma_i = \gamma_i m_i` with a learned :math:`\gamma_i`, started at 1, and the mean magnitudes
    :math:`m_1 = \overline{|W_o|}`, :math:`m_2 = \overline{|W_o - \sigma_1 b_1|}` as constants for the gradient, so that a
    float checkpoint starts at the paper's initial scales (the released code overwrites the first one at every start).

    Gradient: :math:`dW = (\sigma_1 1_{|W| \le 1} + \sigma_2 1_{|W - \sigma_1 b_1| \le 1})\,g`; the residual moves with
    :math:`W` only (in the released code also with the first basis and its scale).

    Args:
        order: number of bases, 1 or 2.
        until: the second basis is on the way out: its scale falls linearly to 0 at this share of the training, and evaluation
            knows the first basis only. The paper drives it out by a penalty whose weight it does not publish; ``None`` keeps
            both, as the released code does.

    Source: Zheng et al. 2024 (BinaryDM), arXiv 2404.05662, sec. 3.2, and its released code.
    """

    def __init__(self, out_channels: int, order: int = 2, until: float | None = None):
        super().__init__()
        if order not in (1, 2):
            raise ValueError(f'BinaryDM weights have 1 or 2 bases, but got order={order}')
        if until is not None and not 0 < until <= 1:
            raise ValueError(f'until is the share of the training with a second basis, in (0, 1], but got {until}')
        self.order, self.until = order, until
        self.gains = nn.Parameter(torch.ones(order, out_channels))
        self.estimator = build_estimator('clipped_ste')
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        self.share = 1.0 if self.until is None else max(0.0, 1 - progress / self.until)

    @property
    def bases(self) -> int:
        return 1 if self.until is not None and not self.training else self.order

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        levels, scales, rest = [], [], weight
        for gain in self.gains[:self.bases]:
            magnitude = rest.detach().flatten(1).abs().mean(1)
            basis = self.estimator(rest)
            scale = gain * magnitude
            rest = rest - per_filter(scale.detach(), weight) * basis.detach()
            levels.append(basis)
            scales.append(scale)
        if self.bases == 2 and self.share < 1:
            scales[1] = scales[1] * self.share
        return torch.cat(levels), torch.cat(scales)

    def extra_repr(self) -> str:
        return f'order={self.order}, until={self.until}'


class LSQActivation(ActivationBinarizer):
    r"""Learned step size quantization. Forward: :math:`s\,\mathrm{round}(\mathrm{clip}(x / s, -2^{k-1}, 2^{k-1} - 1))`.

    Levels are the integers, ``step`` is :math:`s`. Gradient of the value, with :math:`u = x / s`: :math:`\partial x = g`
    inside of the range, 0 outside; :math:`\partial s = \sum g\,(\mathrm{round}(u) - u)` inside, the bound outside. The paper
    divides it by the root of the number of elements, which Adam cancels. The first step is
    :math:`2\,\overline{|x|} / \sqrt{2^{k-1}-1}` for inputs of a normal distribution, which a norm gives (the released code of
    BinaryDM measures it anew in every forward).
    Source: Esser et al. 2020 (LSQ), arXiv 1902.08153, eq. 1-3.
    """

    signed = False
    twos_complement = True

    def __init__(self, bits: int = 4):
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f'LSQ activations take 2 to 8 bits, but got {bits}')
        self.bits = bits
        self.lowest, self.highest = -2 ** (bits - 1), 2 ** (bits - 1) - 1
        self.size = nn.Parameter(torch.full((1,), 2 * (2 / torch.pi) ** 0.5 / self.highest ** 0.5))

    @property
    def step(self) -> Tensor:
        return positive(self.size)

    def forward(self, x: Tensor) -> Tensor:
        return round_ste((x / self.step).clamp(self.lowest, self.highest))

    def extra_repr(self) -> str:
        return f'bits={self.bits}'
