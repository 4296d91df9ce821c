"""Mixed precision on a CPU."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper

from ..registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass of training under bfloat16 autocast, on a CPU; mmengine's ``AmpOptimWrapper`` wants a GPU.

    bfloat16 has the exponents of float32, so there is no loss to scale.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
