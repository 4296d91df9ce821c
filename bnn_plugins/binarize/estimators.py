"""Estimators: the forward sign and its surrogate gradient.

All of them compute the same forward, ``sign(x)`` with ``sign(0) = +1``, and differ in the gradient
``dL/dx = dL/dsign * surrogate(x)``. Shapes are arbitrary and kept; the dtype is kept. Sources are given per class.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bnn_kernels.training import Surrogate

from .lookup import Registry

__all__ = ['EDE', 'STE', 'ApproxSign', 'ClippedSTE', 'Estimator', 'SoftSign', 'SwishSign', 'TanhSign', 'TrainingAware',
           'build_estimator', 'list_estimators', 'register_estimator', 'sign']


def sign(x: Tensor) -> Tensor:
    """+1 where ``x >= 0`` and -1 elsewhere, in the dtype of ``x``. Unlike ``torch.sign``, zero gives +1."""
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)  # torch.where of two numbers takes twice as long on a CPU


class _Sign(torch.autograd.Function):
    """Forward ``sign(x)``; backward ``grad * surrogate`` where the surrogate was computed from ``x`` beforehand."""

    @staticmethod
    def forward(ctx, x: Tensor, surrogate: Tensor | None) -> Tensor:
        ctx.save_for_backward(surrogate)
        return sign(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        surrogate, = ctx.saved_tensors
        return (grad if surrogate is None else grad * surrogate), None


def sign_with(x: Tensor, surrogate: Tensor | None) -> Tensor:
    """``sign(x)``; its gradient is multiplied by ``surrogate``, a constant of the shape of ``x``, or ``None`` for 1."""
    return _Sign.apply(x, surrogate)


class Estimator(nn.Module):
    """Base class. A subclass defines :meth:`surrogate`; one with a schedule also :meth:`set_progress`."""

    def surrogate(self, x: Tensor) -> Tensor | None:
        """The gradient factor at ``x``, of the same shape; ``None`` stands for 1 everywhere."""
        raise NotImplementedError

    def triangle(self) -> Surrogate | None:
        """The same factor in three numbers, where it is a triangle or a box: training operators then need no pass for it.

        A subclass that changes :meth:`surrogate` changes this as well; ``None``: it is another function.
        """
        return None

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return sign(x)
        return sign_with(x, self.surrogate(x.detach()))


@lru_cache
def says_it_too(kind: type, changed: str, other: str) -> bool:
    """Whether the class that defines the method `changed` also defines its other form: a subclass may change one alone."""
    return next(base for base in kind.__mro__ if changed in vars(base)) is next(
        (base for base in kind.__mro__ if other in vars(base)), None)


def triangle_of(estimator: Estimator) -> Surrogate | None:
    """:meth:`Estimator.triangle`, where it belongs to the surrogate of this estimator."""
    return estimator.triangle() if says_it_too(type(estimator), 'surrogate', 'triangle') else None


ESTIMATORS = Registry('estimator', Estimator)
register_estimator, list_estimators = ESTIMATORS.register, ESTIMATORS.list


def build_estimator(spec: str | dict | Estimator) -> Estimator:
    """An estimator from its name, from ``dict(type=name, **options)``, or itself; errors: see :meth:`.Registry.build`."""
    return spec if isinstance(spec, Estimator) else ESTIMATORS.build(spec)


@register_estimator('ste')
class STE(Estimator):
    r"""Straight-through estimator. :math:`\partial = 1`.

    Source: Bengio, Leonard, Courville 2013, arXiv 1308.3432.
    """

    def surrogate(self, x: Tensor) -> None:
        return None

    def triangle(self) -> Surrogate:
        return Surrogate()


@register_estimator('clipped_ste')
class ClippedSTE(Estimator):
    r"""Clipped (saturating) straight-through estimator. :math:`\partial = 1_{|x| \le c}`, ``c = 1``.

    Source: Hubara et al. 2016, arXiv 1602.02830, eq. 4; the edges belong to it (not in a released XNOR-Net for PyTorch).
    """

    def __init__(self, clip: float = 1.0):
        super().__init__()
        self.clip = clip

    def surrogate(self, x: Tensor) -> Tensor:
        return (x.abs() <= self.clip).to(x.dtype)

    def triangle(self) -> Surrogate:
        return Surrogate(limit=self.clip)


@register_estimator('approx_sign')
class ApproxSign(Estimator):
    r"""Piecewise quadratic. :math:`\partial = 2 - 2|x|` for :math:`|x| < 1`, else 0.

    Its integral over the real line is 2, the height of the jump of sign. Source: Liu et al. 2018 (Bi-Real Net),
    arXiv 1808.00278, eq. 6.
    """

    def surrogate(self, x: Tensor) -> Tensor:
        return (2 - 2 * x.abs()).clamp_(min=0)

    def triangle(self) -> Surrogate:
        return Surrogate(2.0, 1.0)


@register_estimator('ede')
class EDE(Estimator):
    r"""Error decay estimator. :math:`\partial = k\,t\,(1 - \tanh^2(t x))`.

    With the training progress :math:`p \in [0, 1]`: :math:`t = T_{min} 10^{p \log_{10}(T_{max}/T_{min})}` and
    :math:`k = \max(1/t, 1)`; from the identity to the sign. Source: Qin et al. 2020 (IR-Net), arXiv 1909.10788, eq. 12-13;
    ``t_min = 0.1`` is the paper's, the released code also uses 1e-3.
    """

    t: float
    k: float

    def __init__(self, t_min: float = 1e-1, t_max: float = 10.0):
        super().__init__()
        if not 0 < t_min <= t_max:
            raise ValueError(f'EDE needs 0 < t_min <= t_max, but got t_min={t_min} and t_max={t_max}')
        self.t_min, self.t_max = t_min, t_max
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        vars(self).update(self.schedule(progress, self.t_min, self.t_max))

    @staticmethod
    @lru_cache
    def schedule(progress: float, t_min: float, t_max: float) -> dict[str, float]:
        t = t_min * 10 ** (progress * math.log10(t_max / t_min))
        return dict(t=t, k=max(1 / t, 1.0))

    def surrogate(self, x: Tensor) -> Tensor:
        return self.k * self.t * (1 - torch.tanh(self.t * x).square_())


@register_estimator('training_aware')
class TrainingAware(EDE):
    r"""Training-aware approximation. :math:`\partial = k\,\max(\sqrt2\,t - t^2 |x|, 0)`, a triangle over
    :math:`|x| < \sqrt2 / t`.

    ``t`` and ``k`` follow the schedule of :class:`EDE`; for activations (``activation=True``) ``k = 1`` and ``t >= 1``, so
    that the integral stays 2. Source: Lin et al. 2020 (RBNN), arXiv 2009.13055, and its released code.
    """

    peak: float
    steepness: float

    def __init__(self, t_min: float = 1e-2, t_max: float = 10.0, activation: bool = False):
        self.activation = activation
        super().__init__(t_min, t_max)

    def set_progress(self, progress: float) -> None:
        vars(self).update(self.triangles(progress, self.t_min, self.t_max, self.activation))

    @staticmethod
    @lru_cache
    def triangles(progress: float, t_min: float, t_max: float, activation: bool) -> dict[str, float]:
        t, k = EDE.schedule(progress, t_min, t_max).values()
        if activation:
            t, k = max(t, 1.0), 1.0
        # Factors only: a compiled surrogate specialises on a power or a difference and recompiles for each value.
        return dict(t=t, k=k, peak=k * math.sqrt(2) * t, steepness=t / math.sqrt(2))

    def surrogate(self, x: Tensor) -> Tensor:
        return self.peak * (1 - self.steepness * x.abs()).clamp_(min=0)

    def triangle(self) -> Surrogate:
        return Surrogate(self.peak, self.steepness)


@register_estimator('swish_sign')
class SwishSign(Estimator):
    r"""Derivative of the SignSwish. :math:`\partial = \beta\,\frac{2 - \beta x \tanh(\beta x / 2)}{1 + \cosh(\beta x)}`.

    Source: Darabi et al. 2018 (BNN+), arXiv 1812.11800, eq. 5.
    """

    def __init__(self, beta: float = 5.0):
        super().__init__()
        self.beta = beta

    def surrogate(self, x: Tensor) -> Tensor:
        # Beyond |bx| = 80 the quotient underflows; cosh would overflow first.
        bx = (self.beta * x).clamp_(-80, 80)
        return self.beta * (2 - bx * torch.tanh(bx / 2)) / (1 + torch.cosh(bx))


@register_estimator('soft_sign')
class SoftSign(Estimator):
    r"""Derivative of the soft-sign :math:`\beta x / (1 + |\beta x|)`. :math:`\partial = \beta / (1 + |\beta x|)^2`."""

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta

    def surrogate(self, x: Tensor) -> Tensor:
        return self.beta / (1 + (self.beta * x).abs()).square_()


@register_estimator('tanh')
class TanhSign(Estimator):
    r"""Derivative of :math:`\tanh(\beta x)`. :math:`\partial = \beta (1 - \tanh^2(\beta x))`.

    Source: Gong et al. 2019 (DSQ), arXiv 1908.05033, with one interval.
    """

    def __init__(self, beta: float = 1.0):
        super().__init__()
        self.beta = beta

    def surrogate(self, x: Tensor) -> Tensor:
        return self.beta * (1 - torch.tanh(self.beta * x).square_())
