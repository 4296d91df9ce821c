r"""A recurrent cell whose gates see the input only: every product is one large one, and the recurrence is elementwise.

Source: HGRN (Qin et al. 2023), arXiv 2311.04823, and MatMul-free LM (Zhu et al. 2024), arXiv 2406.02528, with binary
inputs and weights.
"""

import torch
from torch import Tensor, nn

from ..binarize.lookup import checked_arguments
from .cells import State, last
from .expand import Expansion, spread_copies_
from .gates import GateLinear


class GatedLinearCell(nn.Module):
    r"""One direction of one layer of a gated linear recurrence.

    .. math:: f, \tilde c, o = N(W\,\mathrm{sign}(x)) + b, \quad c' = \sigma(f) c + (1 - \sigma(f)) \tilde c, \quad
        h' = \sigma(o) c'

    No hidden state is binarized, so none is lost; a sequence takes ``log2 T`` elementwise steps.

    Args:
        input_size, hidden_size, bias, method, weight_only, binary_input, expand: as in :class:`BinaryLSTMCell`.
        norm (str): of the product.
        norm_init (float): the initial weight of the norm.

    Shape: as in :class:`BinaryLSTMCell`.
    """

    @checked_arguments
    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None, *,
                 method: str | dict = 'reactnet', norm: str = 'static', norm_init: float = 1.0, weight_only: bool = False,
                 binary_input: bool = False, expand: dict | Expansion | None = None):
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.input = GateLinear(input_size, hidden_size, 3, method, norm, norm_init, binary_input, weight_only, expand)
        self.bias = nn.Parameter(torch.empty(3 * hidden_size)) if bias else None
        self.reset_parameters()
        self.to(device=device, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.input.draw_(self.hidden_size ** -0.5)
        if self.bias is not None:
            self.bias.zero_()[:self.hidden_size] = 1
            expand = self.input.expand
            if expand is not None:
                for part in self.bias.chunk(3):
                    spread_copies_(part, expand.replicas, expand.spread)

    def scan(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps: ``[T, N, D]`` -> outputs ``[T, N, H]`` and the state after the last step (``lengths`` of each)."""
        z = self.input(x)
        forget, candidate, out = (z if self.bias is None else z + self.bias).chunk(3, -1)
        forget = forget.sigmoid()
        fresh = (1 - forget) * candidate
        if state is not None:
            fresh = torch.cat([fresh[:1] + forget[:1] * state[1], fresh[1:]])
        cells = linear_scan(forget, fresh)
        states = out.sigmoid() * cells
        return states, (last(states, lengths), last(cells, lengths))

    def emitted(self, states: Tensor, like: Tensor) -> Tensor:
        return states

    def forward(self, x: Tensor, state: State | None = None) -> State:
        rows = x.view(1, -1, x.shape[-1])
        state = None if state is None else tuple(s.view(-1, self.hidden_size) for s in state)
        h, c = self.scan(rows, state)[1]
        return (h[0], c[0]) if x.ndim == 1 else (h, c)

    def extra_repr(self) -> str:
        return f'{self.input_size}, {self.hidden_size}'


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    """``c[t] = a[t] * c[t - 1] + b[t]`` with ``c[-1] = 0`` along the first dimension, by doubling (Hillis and Steele 1986)."""
    distance = 1
    while distance < len(a):
        b = torch.cat([b[:distance], b[distance:] + a[distance:] * b[:-distance]])
        a = torch.cat([a[:distance], a[distance:] * a[:-distance]])
        distance *= 2
    return b
