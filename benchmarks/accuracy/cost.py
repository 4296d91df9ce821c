"""What a network costs, as the papers count it and beyond."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import bnn_plugins
from bnn_plugins.layers import RPReLU


@dataclass
class Cost:
    """Per image.

    Attributes:
        bops, flops, ops: see :mod:`bnn_plugins.analysis.summary`.
        multiplies: elementwise ones, which OPs leave out: one for each output of a norm, a PReLU or an RPReLU.
        stream_bytes: of all outputs of norms in float32, the real-valued activations of one forward pass.
        params_binary, params_float, bytes_packed: of the whole network.
    """

    bops: int
    flops: int
    ops: float
    multiplies: int
    stream_bytes: int
    params_binary: int
    params_float: int
    bytes_packed: int


@torch.no_grad()
def cost(model: nn.Module, image: Tensor) -> Cost:
    """Costs of ``model`` on ``image`` ``[1, C, H, W]``; the model stays as it is."""
    counts = dict.fromkeys(('norm', 'act'), 0)

    def count(kind: str):
        def hook(module, inputs, output):
            counts[kind] += output.numel()
        return hook

    handles = [module.register_forward_hook(count('norm' if isinstance(module, nn.modules.batchnorm._BatchNorm) else 'act'))
               for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.PReLU | RPReLU)]
    training = model.training
    model.eval()(image)
    for handle in handles:
        handle.remove()
    totals = bnn_plugins.summarize(model, image).totals
    model.train(training)
    return Cost(totals.bops, totals.flops, totals.ops, sum(counts.values()), 4 * counts['norm'], totals.params_binary,
                totals.params_float, totals.bytes_packed)
