"""Activation layers of binary networks."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..binarize.activations import per_channel
from ..binarize.lookup import unknown


class _RPReLU(torch.autograd.Function):
    """See :class:`RPReLU`; written out because torch's backward of PReLU takes several times as long on a CPU."""

    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, slope: Tensor, zeta: Tensor) -> Tensor:
        x = x - gamma
        if not any(ctx.needs_input_grad):  # nothing keeps x: half of the memory, which is most of the time
            negative = x.clamp(max=0).mul_(slope)
            return x.clamp_(min=0).add_(negative).add_(zeta)
        ctx.save_for_backward(x, slope)
        return x.clamp(max=0).mul_(slope).add_(x.clamp(min=0)).add_(zeta)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, slope = ctx.saved_tensors
        negative = x.clamp(max=0)
        grad_slope = (grad * negative).sum_to_size(slope.shape)
        grad_x = negative.sign_().mul_(1 - slope).add_(1).mul_(grad)
        return grad_x, -grad_x.sum_to_size(slope.shape), grad_slope, grad.sum_to_size(slope.shape)


class RPReLU(nn.Module):
    r"""PReLU with learned shifts. Forward: :math:`\mathrm{PReLU}_{\beta_c}(x - \gamma_c) + \zeta_c`.

    Shifts start at 0, slopes at 0.25. Source: Liu et al. 2020 (ReActNet), arXiv 2003.03488, eq. 3.

    Shape: ``[N, C, ...]`` (or ``[..., C]`` with ``channel_dim=-1``), kept.
    """

    def __init__(self, channels: int, channel_dim: int = 1):
        super().__init__()
        self.channel_dim = channel_dim
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), 0.25))
        self.zeta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return _RPReLU.apply(x, *(per_channel(p.to(x.dtype), x.ndim, self.channel_dim)
                                  for p in (self.gamma, self.slope, self.zeta)))

    def extra_repr(self) -> str:
        return f'channels={self.slope.numel()}'


_ACTS = {
    'identity': lambda channels: nn.Identity(),
    'hardtanh': lambda channels: nn.Hardtanh(),
    'relu': lambda channels: nn.ReLU(),
    'prelu': lambda channels: nn.PReLU(channels),
    'rprelu': lambda channels: RPReLU(channels),
}


def build_act(name: str, channels: int) -> nn.Module:
    """The non-linearity of a block: ``'identity'``, ``'hardtanh'``, ``'relu'``, ``'prelu'`` or ``'rprelu'``.

    Raises:
        ValueError: for another name.
    """
    if name not in _ACTS:
        raise ValueError(unknown('act', name, _ACTS))
    return _ACTS[name](channels)
