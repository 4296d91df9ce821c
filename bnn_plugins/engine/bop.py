"""Bop: an optimizer of weights that are -1 and +1 themselves."""

import torch
from torch import Tensor

from ..binarize import sign
from ..registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class Bop(torch.optim.Adam):
    r"""Binary weights flip where the moving average of their gradient asks for it long enough; the rest is trained by Adam.

    With :math:`m \leftarrow (1 - \gamma) m + \gamma g`: :math:`w \leftarrow -w` where :math:`w\,m > \tau`. There are no
    latents: weights are -1 and +1 from the start. Parameter groups marked ``latent=True`` are binary, as
    ``constructor='bnn_plugins.BinaryOptimWrapperConstructor'`` marks those of binary layers.
    Source: Helwegen et al. 2019, arXiv 1906.02107, algorithm 1.

    Args:
        params: groups.
        lr, betas, eps, weight_decay: Adam's, of the other parameters.
        threshold: :math:`\tau`, 1e-8 in the paper.
        gamma: 1e-4 in the paper, and :math:`1` forgets everything at each step.

    Raises:
        ValueError: where no group is marked as binary, and for numbers out of range.
    """

    def __init__(self, params, lr: float = 1e-3, threshold: float = 1e-8, gamma: float = 1e-4, betas=(0.9, 0.999),
                 eps: float = 1e-8, weight_decay: float = 0.0):
        if threshold < 0 or not 0 < gamma <= 1:
            raise ValueError(f'Bop needs threshold >= 0 and 0 < gamma <= 1, but got threshold={threshold} and gamma={gamma}')
        super().__init__(params, lr, betas, eps, weight_decay)
        self.defaults.update(threshold=threshold, gamma=gamma)
        for group in self.param_groups:
            group.setdefault('threshold', threshold)
            group.setdefault('gamma', gamma)
        if not self._binary():
            raise ValueError("Bop found no binary weights: set constructor='bnn_plugins.BinaryOptimWrapperConstructor' in "
                             "optim_wrapper, or mark their parameter groups with latent=True")
        with torch.no_grad():
            for weight, _ in self._binary():
                weight.copy_(sign(weight))
        self._binary_now = False

    def _binary(self) -> list[tuple[Tensor, dict]]:
        return [(weight, group) for group in self.param_groups if group.get('latent') for weight in group['params']]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        kept = []
        for group in self.param_groups:
            weights = [weight for weight in group['params'] if group.get('latent') and weight.grad is not None]
            if weights:
                self._flip(weights, group)
            kept += [(weight, weight.grad) for weight in weights]
        for weight, _ in kept:
            weight.grad = None  # Adam leaves it alone
        super().step()
        for weight, gradient in kept:
            weight.grad = gradient
        return loss

    def _flip(self, weights: list[Tensor], group: dict) -> None:
        for weight in weights:
            if not self.state[weight]:  # Adam wants a step when it loads
                self.state[weight].update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
        momenta = [self.state[weight]['momentum'] for weight in weights]
        torch._foreach_lerp_(momenta, [weight.grad for weight in weights], group['gamma'])
        if not self._binary_now:  # a checkpoint may have been loaded since
            self._binary_now = True
            for weight, _ in self._binary():
                weight.copy_(sign(weight))
        flips = torch._foreach_mul(weights, momenta)
        torch._foreach_sub_(flips, group['threshold'])
        torch._foreach_sign_(flips)
        torch._foreach_clamp_min_(flips, 0)  # 1 where the weight flips, 0 elsewhere
        torch._foreach_mul_(flips, -2)
        torch._foreach_add_(flips, 1)
        torch._foreach_mul_(weights, flips)
