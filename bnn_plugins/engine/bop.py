"""Bop: an optimizer of weights that are -1 and +1 themselves."""

from operator import is_

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from bnn_kernels.updates import Tensors, flip_

from ..binarize import sign
from ..binarize.bunches import Shapes, bunches, flat, memory, shapes, split_as
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
        self._binary_now, self._joined = False, {}
        self._kept: dict[int, Kept] = {}

    def _binary(self) -> list[tuple[Tensor, dict]]:
        return [(weight, group) for group in self.param_groups if group.get('latent') for weight in group['params']]

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for index, group in enumerate(groups):
            if group.get('latent'):
                self._flip(group, self._kept.setdefault(index, Kept()))
        self.param_groups = [group for group in groups if not group.get('latent')]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _flip(self, group: dict, kept: 'Kept') -> None:
        if not self._binary_now:  # a checkpoint may have been loaded since
            self._binary_now = True
            for weight, _ in self._binary():
                weight.copy_(sign(weight))
        weights, gradients = group['params'], [weight.grad for weight in group['params']]
        if any(gradient is None for gradient in gradients) or DTensor in map(type, gradients):
            for weight in [weight for weight in weights if isinstance(weight.grad, DTensor)]:
                momentum = self._state(weight)['momentum'].lerp_(weight.grad, group['gamma'])
                weight.mul_(1 - 2 * (weight * momentum > group['threshold']).to(weight.dtype))
            weights = [weight for weight in weights if not isinstance(weight.grad, DTensor | None)]
            gradients = [weight.grad for weight in weights]
        if kept.state is not self.state or len(kept.states) != len(weights) or not all(map(is_, weights, kept.weights)):
            kept.state, kept.weights, kept.states = self.state, weights, [self._state(weight) for weight in weights]
        momenta = [state['momentum'] for state in kept.states]
        if kept.places[0].update(weights) and kept.places[1].update(gradients, moving=True) and kept.places[2].update(momenta):
            return flip_(*kept.places, group['gamma'], group['threshold'])
        for part, sizes in bunches(shapes(weights)):
            momentum = self._momentum(weights[part], sizes)
            momentum.lerp_(flat([weight.grad for weight in weights[part]]), group['gamma'])
            flips, parts = memory(sizes, momentum.device, momentum.dtype)
            flips.copy_(1 - 2 * (flat(weights[part]) * momentum > group['threshold']).to(flips.dtype))
            torch._foreach_mul_(weights[part], parts)

    def _state(self, weight: Tensor) -> dict:
        state = self.state[weight]
        if not state:  # Adam wants a step when it loads
            state.update(step=torch.zeros(()), momentum=torch.zeros_like(weight))
        return state

    def _momentum(self, weights: list[Tensor], sizes: Shapes) -> Tensor:
        """The momenta as one, ``[n]``, of which those of the state are views."""
        states = [self._state(weight) for weight in weights]
        joined, parts = self._joined.get(weights[0], (None, []))
        if len(parts) != len(states) or not all(state['momentum'] is part for state, part in zip(states, parts, strict=True)):
            joined = flat([state['momentum'] for state in states])  # at first, and after a checkpoint was loaded
            parts = split_as(joined, sizes)
            for state, part in zip(states, parts, strict=True):
                state['momentum'] = part
            self._joined[weights[0]] = joined, parts
        return joined


class Kept:
    """Of a group, between steps: the states of its weights, and where weights, gradients and momenta are."""

    def __init__(self):
        self.state: dict | None = None  # of the optimizer; a checkpoint brings another one
        self.weights: list[Tensor] = []
        self.states: list[dict] = []
        self.places = Tensors(), Tensors(), Tensors()
