"""Adaptive gradient clipping, for networks without norms."""

from collections.abc import Iterable, Sequence

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bnn_kernels.updates import Tensors, clip_units_

from ..binarize.bunches import bunches, flat, shapes, units
from ..registry import HOOKS


def unit_norm(x: Tensor) -> Tensor:
    """Norm of each output unit, ``[O, 1, ...]``; of the whole for vectors and numbers."""
    return x.norm() if x.ndim <= 1 else x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def adaptive_clip_grad_(parameters: Iterable[nn.Parameter], ratio: float = 0.02, eps: float = 1e-3) -> None:
    r"""Scale the gradient of each output unit down, in place, where it is large next to the weight.

    :math:`G_o \leftarrow \lambda \frac{\max(\lVert W_o\rVert, \epsilon)}{\lVert G_o\rVert} G_o` where
    :math:`\lVert G_o\rVert > \lambda \max(\lVert W_o\rVert, \epsilon)`, with ``ratio`` :math:`\lambda`.
    Sources: Brock et al. 2021 (NFNets), arXiv 2102.06171, eq. 3; Chen et al. 2021 ("BNN - BN = ?"), arXiv 2104.08215 (0.02).
    """
    AdaptiveClipping(parameters, ratio, eps)()


class AdaptiveClipping:
    """:func:`adaptive_clip_grad_` of the same parameters at each call."""

    def __init__(self, parameters: Iterable[nn.Parameter], ratio: float = 0.02, eps: float = 1e-3):
        self.parameters, self.ratio, self.eps = list(parameters), ratio, eps
        self.places = Tensors(), Tensors()

    @torch.no_grad()
    def __call__(self) -> None:
        parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        if self.places[0].update(parameters) and self.places[1].update(gradients, moving=True):
            return clip_units_(*self.places, self.ratio, self.eps)
        for parameter in [p for p in parameters if isinstance(p, DTensor)]:  # its units may be in several processes
            parameter.grad.mul_(factors(unit_norm(parameter), unit_norm(parameter.grad), self.ratio, self.eps))
        parameters = [p for p in parameters if not isinstance(p, DTensor)]
        for part, sizes in bunches(shapes(parameters)):
            weights, gradients = parameters[part], [weight.grad for weight in parameters[part]]
            found = units(sizes, weights[0].device, weights[0].dtype)
            norms = (found.reduce(flat(numbers).square(), 'sum').sqrt() for numbers in (weights, gradients))
            found.values.copy_(factors(*norms, self.ratio, self.eps))
            torch._foreach_mul_(gradients, found.factors)


def factors(weight: Tensor, gradient: Tensor, ratio: float, eps: float) -> Tensor:
    """What gradients of these norms are multiplied by, next to weights of those."""
    limit = ratio * weight.clamp(min=eps)
    return torch.where(gradient > limit, limit / gradient.clamp(min=1e-30), torch.ones_like(gradient))


@HOOKS.register_module()
class AdaptiveGradientClippingHook(Hook):
    """:func:`adaptive_clip_grad_` right before each optimizer step, with any optimizer wrapper (also behind a loss scale).

    Args:
        ratio, eps: see :func:`adaptive_clip_grad_`.
        exclude: parts of dotted names of parameters that are left alone; the paper leaves out the classifier.

    Raises:
        ValueError: when an entry of ``exclude`` matches no parameter.
    """

    def __init__(self, ratio: float = 0.02, eps: float = 1e-3, exclude: Sequence[str] = ('fc',)):
        self.ratio, self.eps, self.exclude = ratio, eps, tuple(exclude)
        self._handle = None

    def before_train(self, runner) -> None:
        names = dict(runner.model.named_parameters())
        for part in self.exclude:
            if not any(part in name for name in names):
                raise ValueError(f'exclude of AdaptiveGradientClippingHook: no parameter has {part!r} in its name')
        clipped = [p for name, p in names.items() if not any(part in name for part in self.exclude)]
        clip = AdaptiveClipping(clipped, self.ratio, self.eps)
        self._handle = runner.optim_wrapper.optimizer.register_step_pre_hook(lambda *_: clip())

    def after_train(self, runner) -> None:
        self._handle.remove()
