"""Elastic binarizers (BiT): activations with a learned step, weights centred before the sign."""

import torch
from torch import Tensor, nn

from .activations import ActivationBinarizer, per_channel, round_ste
from .estimators import Estimator, _Sign
from .weights import SignWeight

__all__ = ['CenteredSignWeight', 'ElasticActivation', 'positive']

FLOOR = 1e-5


def positive(x: Tensor) -> Tensor:
    """``max(x, 1e-5)``; the gradient is the identity, so that a step which training pushed below comes back."""
    return x.detach().clamp(min=FLOOR) + (x - x.detach())


class ElasticActivation(ActivationBinarizer):
    r"""Sign (or bit) with a learned threshold per channel and one learned step :math:`a`.

    Forward: :math:`a\,\mathrm{sign}(x + m_c)`, or :math:`a\,\mathrm{clip}(\mathrm{round}((x + m_c) / a), 0, 1)` for what comes
    from a ReLU or a softmax (``signed=False``). The layer multiplies the levels by ``step``, which is :math:`a`.

    Gradient of the value: with :math:`u = (x + m_c) / a`, signed: :math:`\partial x = g\,1_{|u| \le 1}`,
    :math:`\partial a = \sum g\,\mathrm{sign}(u)`; unsigned: :math:`\partial x = g\,1_{0 \le u \le 1}`,
    :math:`\partial a = \sum g\,(1_{u > 1} + 1_{0 \le u \le 1} (\mathrm{round}(u) - u))`. :math:`m_c` receives the sum of
    :math:`\partial x`. BiT divides :math:`\partial a` by the root of the number of elements, which Adam cancels, and starts at
    twice the mean magnitude of the first batch; here ``initial``, for inputs behind a norm.

    Source: Liu et al. 2022 (BiT), arXiv 2205.13016, and its released code.

    Shape: ``[N, C, ...]`` (or ``[..., C]`` with ``channel_dim=-1``), kept.
    """

    def __init__(self, channels: int, channel_dim: int = 1, signed: bool = True, initial: float = 1.0):
        super().__init__()
        if initial <= 0:
            raise ValueError(f'the step of an elastic binarizer is positive, but got initial={initial}')
        self.channel_dim, self.signed = channel_dim, signed
        self.shift = nn.Parameter(torch.zeros(channels))
        self.size = nn.Parameter(torch.full((1,), initial))

    @property
    def step(self) -> Tensor:
        return positive(self.size)

    def threshold(self) -> Tensor:
        return -self.shift

    def forward(self, x: Tensor) -> Tensor:
        x = x + per_channel(self.shift, x.ndim, self.channel_dim)
        if not self.signed:
            return round_ste((x / self.step).clamp(0, 1))
        step = self.step.detach()
        return _Sign.apply(x, (x.detach().abs() <= step).to(x.dtype) / step)

    def extra_repr(self) -> str:
        return f'channels={self.shift.numel()}, signed={self.signed}'


class CenteredSignWeight(SignWeight):
    r"""Sign of centred weights; the scale is the mean magnitude of the weights as they are.

    Forward: :math:`W_b = \alpha\,\mathrm{sign}(\hat W)`, :math:`\hat W = W - \bar W`, :math:`\alpha = \overline{|W|}`,
    both means over each filter (``scale='channel'``, BinaryViT) or over the layer (``'layer'``, BiT); :math:`\alpha` is a
    constant for the gradient. Convolutions are not centred (BinaryViT).

    Gradient: :math:`d\hat W = g \cdot \partial(\hat W)` with the estimator's :math:`\partial`, not multiplied by
    :math:`\alpha`, then exactly through the mean, as in BinaryViT; BiT's released code leaves the mean out of the gradient.
    Sources: Le, Li 2023 (BinaryViT), arXiv 2306.16678; Liu et al. 2022 (BiT), arXiv 2205.13016; their released codes.
    """

    def __init__(self, estimator: str | dict | Estimator = 'clipped_ste', scale: str = 'channel'):
        if scale not in ('channel', 'layer'):
            raise ValueError(f"scale must be 'channel' or 'layer', but got {scale!r}")
        super().__init__(estimator, scale)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        if weight.ndim > 2:
            return super().forward(weight)
        mean = weight.mean(1, keepdim=True) if self.scale == 'channel' else weight.mean()
        return self.scaled(self.estimator(weight - mean), weight)
