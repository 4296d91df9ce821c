"""Compiling before the first real call."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import nn

from .dispatch import recorded


@torch.no_grad()
def warmup(model: nn.Module, shapes: Sequence[Sequence[int]]) -> dict[str, str]:
    """Runs `model` on zeros of each shape: every packed operator finds its backend, and that compiles its kernels.

    Kernels are compiled per layer, never per height, width or batch: for a network that accepts any image, one small image is
    enough. Before a CUDA graph is captured it is necessary, for nothing can be compiled during a capture.

    Args:
        model: in evaluation mode, called with one tensor of the dtype and on the device of its first floating point weight.
        shapes: of that tensor, for example `[(1, 3, 224, 224)]`.

    Returns:
        {operator: backend} of everything that ran, for example `{'binary_conv2d': 'triton-bitplane'}`.

    Raises:
        ValueError: the model trains (running it would move its statistics), or `shapes` is no list of shapes.

    Example:
        >>> class Signs(nn.Module):
        ...     def forward(self, x):
        ...         return pack_activations(x)
        >>> list(warmup(Signs().eval(), [(1, 3, 8, 8)]))
        ['pack_activations']
    """
    if model.training:
        raise ValueError('warmup runs the model, which in training mode changes its statistics: call model.eval() first.')
    if not shapes or not all(isinstance(shape, Sequence) for shape in shapes):
        raise ValueError(f'shapes must be a list of input shapes such as [(1, 3, 224, 224)], got {shapes}.')
    weights = (tensor for tensor in chain(model.parameters(), model.buffers()) if tensor.is_floating_point())
    like = next(weights, torch.empty(0))
    with recorded() as ran:
        for shape in shapes:
            model(torch.zeros(tuple(shape), dtype=like.dtype, device=like.device))
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
    return ran
