"""Binary LSTMs whose states are maps: for clips."""

import torch
from torch import Tensor, nn

from ..binarize.lookup import checked_arguments
from .cells import RecurrentCell, State, both
from .expand import Expansion
from .gates import GateConv2d


class BinaryConvLSTMCell(RecurrentCell):
    r"""The LSTM of :class:`BinaryLSTMCell` with convolutions in the place of matrix products.

    .. math:: z = N_x(W_x \circledast \mathrm{sign}(x)) + N_h(W_h \circledast \mathrm{sign}(h)) + b

    Source of the cell: Shi et al. 2015, arXiv 1506.04214, without peepholes. Outside of the map the fed-back bits are -1, as
    they are before the first frame; with real states (``weight_only``) they are zeros.

    Args:
        in_channels (int), hidden_channels (int): C, O.
        kernel_size (int): odd.
        pad_value (int): what stands outside of the image in the input product: 0, -1 or 1.
        norm (str | tuple): as there; ``'ln'`` is over the channels of each gate and all positions.
        the others: as in :class:`BinaryLSTMCell`.

    Shape: ``x [N, C, H, W]``, state ``(h, c)`` of ``[N, O, H, W]`` -> ``(h', c')``.

    Raises:
        ValueError: for an even kernel, an unknown name, and for widths that ``tau`` does not divide.
    """

    @checked_arguments
    def __init__(self, in_channels: int, hidden_channels: int, kernel_size: int = 3, bias: bool = True, device=None,
                 dtype=None, *, method: str | dict = 'reactnet', gates: str = 'soft', candidate: str = 'tanh',
                 norm: str | tuple[str, str] = 'static', norm_init: float = 1.0, out: str = 'real', weight_only: bool = False,
                 binary_input: bool = False, expand: dict | Expansion | None = None, soft_until: float = 0.0,
                 pad_value: int = 0):
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f'the state keeps its size: kernel_size must be odd, but got {kernel_size}')
        self.units = hidden_channels
        self._init_switches(gates, candidate, out, soft_until, weight_only)
        input_norm, hidden_norm = both(norm)
        common = dict(units=hidden_channels, kernel_size=kernel_size, method=method, norm_init=norm_init,
                      real_input=weight_only, expand=expand)
        self.input = GateConv2d(in_channels, norm=input_norm, binary_input=binary_input, pad_value=pad_value, **common)
        self.hidden = GateConv2d(hidden_channels, norm=hidden_norm, **common)
        self.hidden.pad_value = int(self.first_bit)
        self.bias = nn.Parameter(torch.empty(4 * hidden_channels)) if bias else None
        self.reset_parameters()
        self.to(device=device, dtype=dtype)


class BinaryConvLSTM(nn.Module):
    """Layers of :class:`BinaryConvLSTMCell`, one direction: what comes later is not known yet.

    Args:
        in_channels, hidden_channels, num_layers, kernel_size, bias: of the cells.
        batch_first (bool): ``[N, T, C, H, W]``.
        the others: of the cells.

    Shape: ``[T, N, C, H, W]`` and one state ``(h, c)`` for each layer (or ``None``) -> output ``[T, N, O, H, W]``, states.
    """

    def __init__(self, in_channels: int, hidden_channels: int, kernel_size: int = 3, num_layers: int = 1, bias: bool = True,
                 batch_first: bool = False, *, binary_input: bool = False, **options):
        super().__init__()
        self.batch_first = batch_first
        binary = options.get('out') == 'binary'
        self.cells = nn.ModuleList(
            BinaryConvLSTMCell(hidden_channels if layer else in_channels, hidden_channels, kernel_size, bias,
                               binary_input=binary if layer else binary_input, **options) for layer in range(num_layers))

    def forward(self, x: Tensor, state: list[State] | None = None) -> tuple[Tensor, list[State]]:
        if x.ndim != 5:
            raise ValueError(f'BinaryConvLSTM takes clips [T, N, C, H, W] (or [N, T, ...] with batch_first), but got '
                             f'{tuple(x.shape)}')
        x = x.transpose(0, 1) if self.batch_first else x
        last = []
        for index, cell in enumerate(self.cells):
            states, final = cell.scan(x, None if state is None else state[index])
            last.append(final)
            x = cell.emitted(states, x)
        return x.transpose(0, 1) if self.batch_first else x, last
