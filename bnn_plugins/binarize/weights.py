"""Weight binarizers: latent weights in, levels and a scale out.

``forward(weight)`` takes ``[O, ...]`` and returns ``(levels, scale)``: levels of the same shape, exactly two-valued for one
bit (-1/+1) and odd integers in ``[-(2**k - 1), 2**k - 1]`` for k bits; ``scale`` is ``[O]``, ``[1]`` or ``None`` (one).
The binary weight of the papers is ``W_b = scale * levels``; the layer applies the scale *after* the convolution, where it is
exact. Below, ``g = dL/dW_b`` and ``dW`` is the gradient that the latent weight receives.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bnn_kernels.training import Latent, Surrogate
from bnn_kernels.updates import Tensors, count_flips_

from .activations import round_ste
from .bunches import bunches, flat, memory, shapes, units
from .estimators import STE, Estimator, build_estimator, sign, sign_with, triangle_of

__all__ = ['BNextWeight', 'DoReFaWeight', 'FloatWeight', 'IRNetWeight', 'RBNNWeight', 'ReBNNWeight', 'ReCUWeight',
           'ScaledStandardWeight', 'SignWeight', 'StochasticSignWeight', 'WeightBinarizer', 'XNORWeight']


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


def rows_of(weight: Tensor) -> Tensor:
    """``[O, n]``, each filter in the order in which it lies in memory: a view, of channels-last weights as well."""
    if weight.ndim == 4 and not weight.is_contiguous():
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


def of_rows(rows: Tensor, weight: Tensor) -> Tensor:
    """Numbers in the order of :func:`rows_of` in the shape of ``weight``."""
    if weight.ndim == 4 and not weight.is_contiguous():
        return rows.view(weight.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return rows.view_as(weight)


def mean_magnitude(rows: Tensor, dim: int | None = None) -> Tensor:
    """The mean of ``|rows|``, in one pass and without memory of its size."""
    count = rows.numel() if dim is None else rows.shape[dim]
    return torch.linalg.vector_norm(rows, 1, dim=dim) / count


class Latents(NamedTuple):
    """Real numbers whose signs are the levels, for operators of training that need no levels.

    Attributes:
        weight: of the shape of the filters.
        latent: how their gradient follows.
        scale: as that of :meth:`WeightBinarizer.forward`.
    """

    weight: Tensor
    latent: Latent
    scale: Tensor | None


class WeightBinarizer(nn.Module):
    """Base class.

    Attributes:
        bits (int): bits of one weight; 32 means that weights stay real.
        bases (int): levels and scale are those of so many filters for each output, which the layer adds after scaling.
        annealed (bool): in training, the levels are real numbers that become signs in the course of the schedule.
    """

    bits = 1
    bases = 1
    annealed = False

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def latents(self, weight: Tensor) -> Latents | None:
        """What :meth:`forward` computes in training, before the sign; ``None``: it is no sign of latents with such a gradient.

        A subclass that changes :meth:`forward` changes this as well.
        """
        return None

    def after_step(self, weight: Tensor) -> None:
        """Called with the whole weight after each optimizer step, see :func:`bnn_plugins.binarize.after_step_`."""

    @classmethod
    def after_steps(cls, binarizers: Sequence['WeightBinarizer']) -> Callable[[Sequence[Tensor]], None]:
        """:meth:`after_step` of several binarizers of this class, as a function of their weights."""
        def update(weights: Sequence[Tensor]) -> None:
            for binarizer, weight in zip(binarizers, weights, strict=True):
                binarizer.after_step(weight)
        return update

    def start_epoch(self, weight: Tensor) -> None:
        """Called with the whole weight before each epoch, see :func:`bnn_plugins.binarize.start_epoch_`. It may change
        buffers: one process calls it, the others receive them."""


class FloatWeight(WeightBinarizer):
    """The identity: weights stay real. The first of the two steps in which ReActNet and AdamBNN are trained."""

    bits = 32

    def forward(self, weight: Tensor) -> tuple[Tensor, None]:
        return weight, None


class _Standardise(torch.autograd.Function):
    """``(W - mean) / sqrt(var)`` of each row of ``[O, n]``, the variance unbiased; without any it is centred only.

    With its gradient in one function: recorded one by one, these small operations take longer than the products of a layer.
    Torch's fused layer norm has no finite gradient where there is no variance.
    """

    @staticmethod
    def forward(ctx, flat: Tensor) -> Tensor:
        centred = flat - flat.mean(1, keepdim=True)
        variance = centred.square().sum(1, keepdim=True) / max(flat.shape[1] - 1, 1)
        inverse = torch.where(variance > 0, variance, 1.0).rsqrt()
        y = centred * inverse
        ctx.save_for_backward(y, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        y, inverse = ctx.saved_tensors
        along = (grad * y).sum(1, keepdim=True) / max(y.shape[1] - 1, 1)
        return (grad - grad.mean(1, keepdim=True) - y * along) * inverse


def standardised(weight: Tensor) -> Tensor:
    """``(W - mean) / sqrt(var)`` of each filter, ``[O, n]``; filters without deviation are centred only."""
    return _Standardise.apply(weight.flatten(1))


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
        return self.scaled(self.estimator(weight), weight)

    def scaled(self, levels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Levels, through whose gradient the scale is not multiplied, and the scale of ``weight``."""
        scale = self.magnitude(weight)
        return levels if scale is None else _UnscaleGrad.apply(levels, per_filter(scale, weight)), scale

    def magnitude(self, weight: Tensor) -> Tensor | None:
        if self.scale == 'none':
            return None
        rows = rows_of(weight.detach())
        return mean_magnitude(rows, 1) if self.scale == 'channel' else mean_magnitude(rows).view(1)

    def latents(self, weight: Tensor) -> Latents | None:
        surrogate = triangle_of(self.estimator)
        return surrogate and Latents(weight, Latent(surrogate, through_scale=False), self.magnitude(weight))

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
    \mathrm{sign}(\hat W_j)`, then through the clip and the mean. The released code centres and clips the latents in place, so
    that its gradient passes both; Adam cancels its factor :math:`n (1 - 1/C)`.
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
        flat = standardised(weight)
        scale = torch.exp2(flat.detach().abs().mean(1).clamp(min=1e-12).log2().round())
        return self.estimator(flat.view_as(weight)), scale


class ReCUWeight(WeightBinarizer):
    r"""Rectified clamp unit: weights in the tails of a Laplace distribution are pulled back so that they can flip again.

    Forward: :math:`W_1 = 2\sqrt2\,(W_o - \mu_o)/\sqrt{\sigma_o^2 + 10^{-5}}`, :math:`b = \overline{|W_1|}` over the layer,
    :math:`Q = -b \ln(2 - 2\tau)`, :math:`W_b = \alpha_o\,\mathrm{sign}(\mathrm{clip}(W_1, -Q, Q))` with a learned
    :math:`\alpha`, started at :math:`1/\sqrt{n}` (n = fan-in) to keep the variance where no norm follows; the released code
    draws it from U(0, 1), which a norm absorbs.

    Gradient: :math:`dW_1 = \alpha\,g\,1_{|W_1| \le Q}` (identity at the sign), then exactly through :math:`\mu, \sigma`;
    ``Q`` is a constant. Schedule: :math:`\tau = A e^p + B` from ``tau_min`` to ``tau_max`` over the progress p in [0, 1].
    Source: Xu et al. 2021 (ReCU), arXiv 2103.12369, eq. 8-12.
    """

    tau: float
    quantile: float

    def __init__(self, out_channels: int, fan_in: int, tau_min: float = 0.85, tau_max: float = 0.99):
        super().__init__()
        if not 0.5 < tau_min <= tau_max < 1:
            raise ValueError(f'ReCU needs 0.5 < tau_min <= tau_max < 1, but got tau_min={tau_min} and tau_max={tau_max}')
        self.tau_min, self.tau_max = tau_min, tau_max
        self.alpha = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        vars(self).update(self.schedule(progress, self.tau_min, self.tau_max))

    @staticmethod
    @lru_cache
    def schedule(progress: float, tau_min: float, tau_max: float) -> dict[str, float]:
        slope = (tau_max - tau_min) / (math.e - 1)
        tau = slope * math.exp(progress) + tau_min - slope
        # Here and not in forward: a compiled forward would specialise on the logarithm and recompile for each value.
        return dict(tau=tau, quantile=-math.log(2 - 2 * tau))

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows, limit, factor = self.standardised(weight)
        inside = (rows.detach().abs() <= limit).to(rows.dtype).mul_(factor)
        return of_rows(sign_with(rows, inside), weight), self.alpha

    def latents(self, weight: Tensor) -> Latents:
        rows, limit, factor = self.standardised(weight)
        return Latents(of_rows(rows, weight), Latent(Surrogate(factor, limit=float(limit))), self.alpha)

    def standardised(self, weight: Tensor) -> tuple[Tensor, Tensor, float]:
        """Rows ``[O, n]`` that are :math:`W_1` but for a factor, what :math:`Q` is of them, and the factor: neither their
        signs nor what is clamped depends on it. Torch's fused layer norm divides the variance by n, not by n - 1."""
        rows = rows_of(weight)
        unbiased = max(rows.shape[1] - 1, 1) / rows.shape[1]
        rows = F.layer_norm(rows, rows.shape[1:], eps=1e-5 * unbiased)
        return rows, self.quantile * mean_magnitude(rows.detach()), math.sqrt(8 * unbiased)


class RBNNWeight(WeightBinarizer):
    r"""Rotated weights: the angle between a filter and its binary version is made smaller before the sign.

    Forward: :math:`W_2 = (W_o - \mu_o)/\sigma_o`, its :math:`n` numbers as a matrix :math:`X_o` of :math:`a \times b` with
    :math:`ab = n` closest to a square; :math:`W_3 = W_2 + |\sin\theta_o| (R_1^T X_o R_2 - W_2)`,
    :math:`W_b = \alpha_o\,\mathrm{sign}(W_3)` with learned :math:`\theta` and :math:`\alpha`.

    Gradient: :math:`dW_3 = \alpha g\,\partial(W_3)` with the training-aware approximation, then exactly through the rotation,
    :math:`\theta`, mean and deviation. The released code cuts the gradient of the rotation and starts at
    :math:`\theta = \pi/2`, where then neither latents nor :math:`\theta` receive any; here the start is :math:`\pi/4`.

    :meth:`start_epoch` fits the rotations to the weights. They are buffers of the state dict: the signs depend on them.
    Source: Lin et al. 2020 (RBNN), arXiv 2009.13055, and its released code.
    """

    left: Tensor
    right: Tensor

    def __init__(self, out_channels: int, fan_in: int, estimator: str | dict | Estimator = 'training_aware',
                 alternations: int = 3):
        super().__init__()
        self.estimator = build_estimator(estimator)
        self.alternations = alternations
        self.alpha = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))
        self.theta = nn.Parameter(torch.full((out_channels,), math.pi / 4))
        rows = next(a for a in range(math.isqrt(fan_in), 0, -1) if fan_in % a == 0)
        for name, size in (('left', rows), ('right', fan_in // rows)):
            self.register_buffer(name, torch.linalg.qr(torch.randn(size, size)).Q)

    def _matrices(self, weight: Tensor) -> Tensor:
        return standardised(weight).unflatten(1, (len(self.left), len(self.right)))

    def rotated(self, matrices: Tensor) -> Tensor:
        """``R_1^T X R_2`` for ``[O, a, b]``, never rounded by autocast: signs would differ from those that are packed."""
        with nullcontext() if matrices.is_meta else torch.autocast(matrices.device.type, enabled=False):
            return self.left.mT @ matrices @ self.right

    @torch.no_grad()
    def start_epoch(self, weight: Tensor) -> None:
        r"""Alternating maximisation of :math:`\sum_o \mathrm{tr}(B_o^T R_1^T X_o R_2)` over signs ``B`` and rotations."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        matrices, left, right = (t.to(dtype) for t in (self._matrices(weight), self.left, self.right))
        for _ in range(self.alternations):
            signs = sign(left.mT @ matrices @ right)
            left = nearest_rotation(torch.einsum('oij,jk,olk->il', matrices, right, signs))
            right = nearest_rotation(torch.einsum('oij,ik,okl->jl', matrices, left, signs))
        self.left.copy_(left)
        self.right.copy_(right)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        matrices = self._matrices(weight)
        turn = self.theta.sin().abs().view(-1, 1, 1)
        mixed = matrices + turn * (self.rotated(matrices) - matrices)
        return self.estimator(mixed.view_as(weight)), self.alpha

    def extra_repr(self) -> str:
        return f'rotations {len(self.left)}x{len(self.right)}'


def nearest_rotation(target: Tensor) -> Tensor:
    """The orthogonal ``R`` with the largest ``tr(R^T target)``: ``U V^T`` of its singular value decomposition."""
    u, _, vh = torch.linalg.svd(target)
    return u @ vh


class _Resilient(torch.autograd.Function):
    """Signs and scale of ReBNN; the gradient of the weighted reconstruction error is added on the way back."""

    @staticmethod
    def forward(ctx, weight: Tensor, alpha: Tensor, flips: Tensor, parts: int):
        levels, ctx.parts = sign(weight), parts
        ctx.save_for_backward(weight, alpha, flips, levels)
        return levels, alpha.view_as(alpha)

    @staticmethod
    def backward(ctx, grad_levels: Tensor, grad_alpha: Tensor):
        weight, alpha, flips, levels = ctx.saved_tensors
        tiny = torch.finfo(alpha.dtype).tiny
        peak = grad_levels.flatten(1).abs().amax(1) / alpha.clamp(min=tiny)  # levels received alpha * g
        balance = (flips * peak * ctx.parts).clamp(1e-5, 2e-4) / ctx.parts
        error = weight - per_filter(alpha, weight) * levels
        inside = (weight.abs() <= 1).to(weight.dtype)
        dw = grad_levels * inside + per_filter(balance, weight) * error
        return dw, grad_alpha - balance * (error * levels).flatten(1).sum(1), None, None


class ReBNNWeight(WeightBinarizer):
    r"""Resilient binary weights: a weighted reconstruction error holds back latents that would flip to and fro.

    Forward: :math:`W_b = \alpha_o\,\mathrm{sign}(W)` with a learned :math:`\alpha_o = |a_o|`.

    Gradient, with the loss :math:`L + \frac{\gamma_o}2 \lVert W - \alpha b \rVert^2`, :math:`b = \mathrm{sign}(W)`:
    :math:`dW = \alpha g\,1_{|W| \le 1} + \gamma_o (W - \alpha b)`, :math:`d\alpha = \sum g b - \gamma_o \sum (W - \alpha b) b`
    with :math:`\gamma_o = \mathrm{clip}(f_o \max|g_o|, 10^{-5}, 2\cdot10^{-4})` and :math:`f_o`, the share of the filter's
    signs that the last optimizer step flipped (:meth:`after_step` counts). These are the paper's; the released code has no
    clip of the gradient at 1, a constant :math:`\gamma = 2\cdot10^{-4}`, and :math:`W` for :math:`b` in :math:`d\alpha`. A
    loss scale of float16 training weakens the reconstruction term; bfloat16 needs none.
    Source: Xu et al. 2023 (ReBNN), arXiv 2302.00956.

    Attributes:
        parts (int): backward passes of which a gradient is the sum, each of a loss divided by their number
            (:func:`bnn_plugins.binarize.set_parts`): the reconstruction term is divided alike.
    """

    flips: Tensor
    last: Tensor
    parts = 1

    def __init__(self, out_channels: int, fan_in: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.full((out_channels,), fan_in ** -0.5))
        # In the state dict, so that a resumed run repeats the uninterrupted one; 0: no step was taken yet.
        self.register_buffer('flips', torch.zeros(out_channels))
        self.register_buffer('last', torch.zeros(out_channels, fan_in, dtype=torch.int8))

    def after_step(self, weight: Tensor) -> None:
        self.after_steps([self])([weight])

    @classmethod
    def after_steps(cls, binarizers: Sequence['ReBNNWeight']) -> Callable[[Sequence[Tensor]], None]:
        lists = filters, last, shares = Tensors(), Tensors(torch.int8), Tensors()
        buffers = [binarizer._buffers for binarizer in binarizers]  # where nn.Module looks for an attribute last

        @torch.no_grad()
        def update(weights: Sequence[Tensor]) -> None:
            now: Any = weights, [found['last'] for found in buffers], [found['flips'] for found in buffers]
            if all(places.update(tensors) for places, tensors in zip(lists, now, strict=True)):
                count_flips_(filters, last, shares)
            else:
                count_flips(*now)
        return update

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return _Resilient.apply(weight, self.alpha.abs(), self.flips, self.parts)


def count_flips(weights: Sequence[Tensor], kept: Sequence[Tensor], shares: Sequence[Tensor]) -> None:
    """:func:`bnn_kernels.updates.count_flips_`, by torch's operators: on any device, in any dtype."""
    for part, sizes in bunches(shapes(weights)):
        filters = units(sizes, shares[0].device, shares[0].dtype)
        last, parts = memory(shapes(kept[part]), kept[0].device, kept[0].dtype)
        signs = sign(flat(weights[part])).to(last.dtype)
        filters.values.copy_(filters.reduce((signs == -flat(kept[part])).to(shares[0].dtype), 'mean'))
        last.copy_(signs)
        torch._foreach_copy_(shares[part], filters.vectors)  # pyright: ignore[reportPrivateImportUsage, reportArgumentType]
        torch._foreach_copy_(kept[part], parts)  # pyright: ignore[reportPrivateImportUsage, reportArgumentType]


class BNextWeight(WeightBinarizer):
    r"""Signs at the end of a temperature schedule, without a scale.

    Forward in training: :math:`W_b = \mathrm{clip}(W / T, -1, 1)`, and :math:`\mathrm{sign}(W)` once :math:`T` is at its end;
    in evaluation always :math:`\mathrm{sign}(W)`, so that what is measured is what the bits compute (the released code
    evaluates with the weights of the temperature). Gradient: :math:`dW = g`;
    latents are to be clipped to [-1.5, 1.5].

    Schedule: :math:`T = 10^{-7 p / p_1}` over the progress p, the sign from :math:`p_1` on; the released code multiplies by
    0.9 each epoch, which takes 153 of its 512 epochs. The released training scripts of ES-BNext bind it to another class,
    where it has no effect.
    Source: Guo et al. 2022 (BNext), arXiv 2211.12933, released code.
    """

    temperature: float

    def __init__(self, until: float = 0.3):
        super().__init__()
        if not 0 < until <= 1:
            raise ValueError(f'BNext: until is the share of the training with a temperature, in (0, 1], but got {until}')
        self.until = until
        self.estimator = STE()
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        vars(self).update(self.schedule(progress, self.until))

    @staticmethod
    @lru_cache
    def schedule(progress: float, until: float) -> dict[str, float]:
        return dict(temperature=10 ** (-7 * progress / until), annealed=progress < until)

    def forward(self, weight: Tensor) -> tuple[Tensor, None]:
        if not (self.training and self.annealed):
            return self.estimator(weight), None
        soft = (weight.detach() / self.temperature).clamp(-1, 1)
        return soft + (weight - weight.detach()), None

    def extra_repr(self) -> str:
        return f'until={self.until}'


class ScaledStandardWeight(WeightBinarizer):
    r"""Scaled weight standardisation for networks without norms.

    Forward: :math:`\hat W_o = \frac{W_o - \mu_o}{(\sigma_o + 10^{-5})\sqrt n}` with the biased deviation (n),
    :math:`W_b = \kappa_o\,\overline{|\hat W_o|}\,\mathrm{sign}(\hat W_o)` with a learned gain :math:`\kappa`, started at 1;
    the mean magnitude is a constant for the gradient.

    Gradient: :math:`d\hat W = \kappa\,g\,1_{|\hat W| \le 1}`, then exactly through mean and deviation.
    Source: Chen et al. 2021 ("BNN - BN = ?"), arXiv 2104.08215, and its released code.
    """

    def __init__(self, out_channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.estimator = build_estimator('clipped_ste')

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        flat = weight.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        flat = flat / ((flat.std(1, correction=0, keepdim=True) + 1e-5) * math.sqrt(flat.shape[1]))
        magnitude = flat.detach().abs().mean(1)
        levels = self.estimator(flat.view_as(weight))
        return _UnscaleGrad.apply(levels, per_filter(magnitude, weight)), magnitude * self.gain
