"""Weight binarizers: latent weights in, levels and a scale out.

``forward(weight)`` takes ``[O, ...]`` and returns ``(levels, scale)``: levels of the same shape, exactly two-valued for one
bit (-1/+1) and odd integers in ``[-(2**k - 1), 2**k - 1]`` for k bits; ``scale`` is ``[O]``, ``[1]`` or ``None`` (one).
The binary weight of the papers is ``W_b = scale * levels``; the layer applies the scale *after* the convolution, where it is
exact. Below, ``g = dL/dW_b`` and ``dW`` is the gradient that the latent weight receives.
"""

import math

import torch
from torch import Tensor, nn

from .activations import round_ste
from .estimators import STE, Estimator, build_estimator

__all__ = ['DoReFaWeight', 'IRNetWeight', 'ReCUWeight', 'SignWeight', 'StochasticSignWeight', 'WeightBinarizer', 'XNORWeight']


class _UnscaleGrad(torch.autograd.Function):
    """Identity; the gradient is divided by ``scale``."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        scale, = ctx.saved_tensors
        # A filter of zeros has scale 0 and receives the gradient 0 through it: 0 / tiny is 0 as well.
        return grad / scale.clamp(min=torch.finfo(scale.dtype).tiny), None


def per_filter(values: Tensor, weight: Tensor) -> Tensor:
    """View ``[O]`` or ``[1]`` so that it broadcasts over ``weight``, ``[O, ...]``."""
    return values.view(-1, *[1] * (weight.ndim - 1))


class WeightBinarizer(nn.Module):
    """Base class. ``bits`` is the number of bits of one weight."""

    bits = 1

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError


class SignWeight(WeightBinarizer):
    r"""Sign with an optional magnitude as scale.

    Forward: :math:`W_b = \alpha\,\mathrm{sign}(W)`, :math:`\alpha` = 1 (``'none'``), :math:`\overline{|W_o|}` per filter
    (``'channel'``) or :math:`\overline{|W|}` over the layer (``'layer'``), a constant for the gradient.

    Gradient: :math:`dW = g \cdot \partial(W)` with the estimator's :math:`\partial`; *not* multiplied by :math:`\alpha`, as in
    the released codes of Bi-Real Net, ReActNet and DoReFa-Net.

    Sources: BinaryConnect arXiv 1511.00363 and BinaryNet arXiv 1602.02830 (no scale, identity, latents clipped to [-1, 1]);
    Bi-Real Net arXiv 1808.00278 (channel, clipped STE); DoReFa-Net arXiv 1606.06160 eq. 7 (layer, identity).
    """

    def __init__(self, estimator: str | dict | Estimator = 'clipped_ste', scale: str = 'channel'):
        super().__init__()
        if scale not in ('none', 'channel', 'layer'):
            raise ValueError(f"scale must be 'none', 'channel' or 'layer', but got {scale!r}")
        self.estimator = build_estimator(estimator)
        self.scale = scale

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        levels = self.estimator(weight)
        if self.scale == 'none':
            return levels, None
        magnitude = weight.detach().abs()
        scale = magnitude.flatten(1).mean(1) if self.scale == 'channel' else magnitude.mean().view(1)
        return _UnscaleGrad.apply(levels, per_filter(scale, weight)), scale

    def extra_repr(self) -> str:
        return f'scale={self.scale!r}'


class StochasticSignWeight(WeightBinarizer):
    r"""Stochastic BinaryConnect. In training :math:`W_b = +1` with probability :math:`\mathrm{clip}((W+1)/2, 0, 1)`, else -1.

    In evaluation :math:`W_b = \mathrm{sign}(W)` (the first of the three test-time methods of the paper's section 2.6), so that
    the packed model is the evaluated one. Gradient: :math:`dW = g`; latents are to be clipped to [-1, 1].
    Source: Courbariaux et al. 2015, arXiv 1511.00363, eq. 2-3.
    """

    def __init__(self):
        super().__init__()
        self.estimator = STE()

    def forward(self, weight: Tensor) -> tuple[Tensor, None]:
        if not self.training:
            return self.estimator(weight), None
        probability = ((weight.detach() + 1) / 2).clamp_(0, 1)
        # The draw replaces the sign in the forward only; weight - weight.detach() is an exact zero with gradient 1.
        draw = torch.where(torch.rand_like(probability) < probability, 1.0, -1.0).to(weight.dtype)
        return draw + (weight - weight.detach()), None


class XNORWeight(WeightBinarizer):
    r"""Centred sign with the mean magnitude as scale.

    Forward: :math:`\hat W = \mathrm{clip}(W - \bar W_{o,\cdot,k}, -1, 1)`, the mean over input channels for each filter and
    tap; :math:`W_b = \alpha_o\,\mathrm{sign}(\hat W)`, :math:`\alpha_o = \overline{|\hat W_o|}`. One input channel per filter
    (depthwise) is not centred: the difference would be zero.

    Gradient: :math:`d\hat W_i = \alpha\,g_i\,1_{|\hat W_i| \le 1} + \mathrm{sign}(\hat W_i)\,\frac1n \sum_j g_j
    \mathrm{sign}(\hat W_j)`, then through the clip and the mean.
    Source: Rastegari et al. 2016 (XNOR-Net), arXiv 1603.05279, eq. 12, and its released code (centring, clip).
    """

    def __init__(self, estimator: str | dict | Estimator = 'clipped_ste'):
        super().__init__()
        self.estimator = build_estimator(estimator)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if weight.shape[1] > 1:
            weight = weight - weight.mean(1, keepdim=True)
        weight = weight.clamp(-1, 1)
        levels = self.estimator(weight)
        # sign(w) w is |w|, but with sign(0) = +1 in the gradient: a filter of zeros can leave zero.
        return levels, (levels.detach() * weight).flatten(1).mean(1)


class DoReFaWeight(WeightBinarizer):
    r"""k-bit weights, k >= 2 (one bit is ``SignWeight('ste', scale='layer')``).

    Forward: :math:`W_b = 2\,q_k\left(\frac{\tanh W}{2\max|\tanh W|} + \frac12\right) - 1` with
    :math:`q_k(x) = \mathrm{round}((2^k-1)x)/(2^k-1)`. Levels are the odd integers :math:`2\,\mathrm{round}(\cdot) - (2^k-1)`,
    the scale is :math:`1/(2^k-1)`.

    Gradient: identity through the rounding, exact through tanh and max. Source: arXiv 1606.06160, eq. 9.
    """

    def __init__(self, bits: int = 2):
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f'DoReFa weights take 2 to 8 bits here, but got {bits}')
        self.bits = bits

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        top = 2 ** self.bits - 1
        squashed = torch.tanh(weight)
        unit = squashed / (2 * squashed.abs().max().clamp(min=1e-12)) + 0.5
        return 2 * round_ste(unit * top) - top, weight.new_full((1,), 1 / top)

    def extra_repr(self) -> str:
        return f'bits={self.bits}'


class IRNetWeight(WeightBinarizer):
    r"""Libra parameter binarization.

    Forward: :math:`\hat W_o = (W_o - \mu_o) / \sigma_o`; :math:`W_b = 2^{s_o}\,\mathrm{sign}(\hat W_o)` with
    :math:`s_o = \mathrm{round}(\log_2 \overline{|\hat W_o|})`, a constant for the gradient.

    Gradient: :math:`d\hat W = 2^{s_o} g \cdot \partial(\hat W)` with the EDE's :math:`\partial`, then exactly through
    :math:`\mu` and :math:`\sigma`. Source: Qin et al. 2020 (IR-Net), arXiv 1909.10788, eq. 5-8.
    """

    def __init__(self, estimator: str | dict | Estimator = 'ede'):
        super().__init__()
        self.estimator = build_estimator(estimator)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        flat = weight.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        if flat.shape[1] > 1:
            flat = flat / (flat.std(1, keepdim=True) + 1e-5)
        scale = torch.exp2(flat.detach().abs().mean(1).clamp(min=1e-12).log2().round())
        return self.estimator(flat.view_as(weight)), scale


class ReCUWeight(WeightBinarizer):
    r"""Rectified clamp unit: weights in the tails of a Laplace distribution are pulled back so that they can flip again.

    Forward: :math:`W_1 = 2\sqrt2\,(W_o - \mu_o)/\sigma_o`, :math:`b = \overline{|W_1|}` over the layer,
    :math:`Q = -b \ln(2 - 2\tau)`, :math:`W_b = \alpha_o\,\mathrm{sign}(\mathrm{clip}(W_1, -Q, Q))` with a learned
    :math:`\alpha`, started at :math:`1/\sqrt{n}` (n = fan-in) to keep the variance where no norm follows; the released code
    draws it from U(0, 1), which a norm absorbs.

    Gradient: :math:`dW_1 = \alpha\,g\,1_{|W_1| \le Q}` (identity at the sign), then exactly through :math:`\mu, \sigma`;
    ``Q`` is a constant. Schedule: :math:`\tau = A e^p + B` from ``tau_min`` to ``tau_max`` over the progress p in [0, 1].
    Source: Xu et al. 2021 (ReCU), arXiv 2103.12369, eq. 8-12.
    """

    def __init__(self, out_channels: int, fan_in: int, tau_min: float = 0.85, tau_max: float = 0.99):
        super().__init__()
        if not 0.5 < tau_min <= tau_max < 1:
            raise ValueError(f'ReCU needs 0.5 < tau_min <= tau_max < 1, but got tau_min={tau_min} and tau_max={tau_max}')
        self.tau_min, self.tau_max = tau_min, tau_max
        self.alpha = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))
        self.estimator = STE()
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        slope = (self.tau_max - self.tau_min) / (math.e - 1)
        self.tau = slope * math.exp(progress) + self.tau_min - slope
        # Here and not in forward: a compiled forward would specialise on the logarithm and recompile for each value.
        self.quantile = -math.log(2 - 2 * self.tau)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        flat = weight.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        if flat.shape[1] > 1:
            flat = flat * (2 * math.sqrt(2) / (flat.std(1, keepdim=True) + 1e-5))
        bound = self.quantile * flat.detach().abs().mean()
        clamped = torch.minimum(torch.maximum(flat, -bound), bound)
        return self.estimator(clamped.view_as(weight)), self.alpha
