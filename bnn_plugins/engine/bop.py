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

    def _binary(self) -> list[tuple[Tensor, dict]]:
        return [(weight, group) for group in self.param_groups if group.get('latent') for weight in group['params']]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [(weight, weight.grad) for weight, _ in self._binary()]
        for weight, group in self._binary():
            if weight.grad is not None:
                state = self.state[weight]
                if not state:
                    state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))  # Adam wants a step when it loads
                momentum = state['momentum']
                momentum.lerp_(weight.grad.to(momentum.dtype), group['gamma'])
                weight.copy_(sign(weight))  # a checkpoint may have been loaded since
                weight.mul_(torch.where(weight * momentum > group['threshold'], -1.0, 1.0))
                weight.grad = None  # Adam leaves it alone
        super().step()
        for weight, gradient in gradients:
            weight.grad = gradient
        return loss
