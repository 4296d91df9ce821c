"""Activation layers of binary networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..binarize.activations import per_channel
from ..binarize.lookup import unknown


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
        x = x - per_channel(self.gamma, x.ndim, self.channel_dim)
        # prelu() wants the channels at dimension 1 and a weight of the input's dtype.
        if self.channel_dim == 1:
            x = F.prelu(x, self.slope.to(x.dtype))
        else:
            x = torch.where(x > 0, x, self.slope * x)
        return x + per_channel(self.zeta, x.ndim, self.channel_dim)

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
