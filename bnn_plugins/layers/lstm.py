"""Binary LSTMs with the interface of ``torch.nn.LSTM``."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..binarize import unknown
from ..binarize.lookup import checked_arguments
from .cells import RecurrentCell, State, both
from .expand import Expansion
from .gated_linear import GatedLinearCell
from .gates import GateLinear


class BinaryLSTMCell(RecurrentCell):
    r"""One direction of one layer; as a module, one step like ``nn.LSTMCell``.

    .. math:: z = N_x(W_x\,\mathrm{sign}(x)) + N_h(W_h\,\mathrm{sign}(h)) + b, \quad
        c' = f c + i g, \quad h' = o \tanh(c')

    with :math:`i, f, o` sigmoids or steps and :math:`g` tanh or sign of the four parts of :math:`z` (in torch's order).
    Weights, inputs and the fed-back hidden state are binary, the cell state is real; the *real* :math:`h'` is what the next
    layer sees by default: of all ways to lose accuracy here, passing on signs is the largest.

    Weights start uniform in :math:`\pm 1/\sqrt{H}`, the forget bias at 1, other biases and all thresholds at 0, the hidden
    bits at -1, the cell at 0.

    Args:
        input_size (int): D.
        hidden_size (int): H.
        bias (bool): of the gates.
        method (str | dict): binarizers of weights and activations, see :func:`bnn_plugins.list_methods`.
        gates (str): ``'soft'``, ``'binary_if'`` (input and forget gate in {0, 1}) or ``'binary'`` (also the output gate).
        candidate (str): ``'tanh'`` or ``'sign'``; with binary gates the cell is then an integer.
        norm (str | tuple): ``'static'``, ``'ln'`` or ``'none'``, or one for the input and one for the hidden product, see
            :mod:`bnn_plugins.layers.gates`.
        norm_init (float): the initial weight of the norms. Real states are smaller than signs: with ``weight_only``, 3 trains
            faster than 1.
        out (str): ``'real'``, or ``'binary'``: the next layer sees the signs that are fed back. The state stays real.
        weight_only (bool): inputs and hidden states stay real.
        binary_input (bool): the input is -1/+1 already and taken as it is.
        expand (dict): ``dict(tau=2)``: ``hidden_size`` (and ``input_size``, from a layer before) are the wide widths, products
            have ``tau`` times fewer and deeper filters, and every gate is tiled ``tau**2`` times with norm weights and biases
            of its own. ``spread`` sets the biases of the copies apart.
        soft_until (float): share of the training with soft gates, see :class:`RecurrentCell`.

    Shape: ``x [N, D]``, ``(h, c)`` of ``[N, H]`` (zero cell and hidden bits -1 without) -> ``(h', c')``. Also without ``N``.

    Raises:
        ValueError: for an unknown name, and for sizes that ``tau`` does not divide.
    """

    @checked_arguments
    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None, *,
                 method: str | dict = 'reactnet', gates: str = 'soft', candidate: str = 'tanh',
                 norm: str | tuple[str, str] = 'static', norm_init: float = 1.0, out: str = 'real', weight_only: bool = False,
                 binary_input: bool = False, expand: dict | Expansion | None = None, soft_until: float = 0.0):
        super().__init__()
        self.input_size, self.hidden_size, self.units = input_size, hidden_size, hidden_size
        self._init_switches(gates, candidate, out, soft_until, weight_only)
        input_norm, hidden_norm = both(norm)
        common = dict(units=hidden_size, method=method, norm_init=norm_init, real_input=weight_only, expand=expand)
        self.input = GateLinear(input_size, norm=input_norm, binary_input=binary_input, **common)
        self.hidden = GateLinear(hidden_size, norm=hidden_norm, **common)
        self.bias = nn.Parameter(torch.empty(4 * hidden_size)) if bias else None
        self.reset_parameters()
        self.to(device=device, dtype=dtype)


CELLS = {'lstm': BinaryLSTMCell, 'gated_linear': GatedLinearCell}


class BinaryLSTM(nn.Module):
    """Layers of binary cells in one or two directions; arguments, shapes and results of ``nn.LSTM``.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional: as in ``nn.LSTM``.
        cell (str): ``'lstm'`` (:class:`BinaryLSTMCell`), or ``'gated_linear'`` (:class:`GatedLinearCell`), whose gates see the
            input only, so that a sequence is computed in parallel.
        the others: of the cell.

    Shape: ``[T, N, D]`` (``[N, T, D]`` with ``batch_first``, ``[T, D]`` without a batch, or a ``PackedSequence``) and states
    ``(h, c)`` of ``[layers * directions, N, H]`` -> output ``[T, N, directions * H]``, ``(h, c)``. States are the real ones
    also where ``out='binary'``.

    Raises:
        ValueError: for an unknown cell or a wrong shape, and for dropout between layers of binary outputs.
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, bias: bool = True, batch_first: bool = False,
                 dropout: float = 0.0, bidirectional: bool = False, device=None, dtype=None, *, cell: str = 'lstm',
                 binary_input: bool = False, **options):
        super().__init__()
        if cell not in CELLS:
            raise ValueError(unknown('cell', cell, CELLS))
        binary = options.get('out') == 'binary'
        if dropout and num_layers > 1 and binary:
            raise ValueError("dropout would make zeros of the -1/+1 between the layers: leave it out, or use out='real'")
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.directions = 2 if bidirectional else 1
        self.cells = nn.ModuleList()
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self.directions
            for _ in range(self.directions):
                self.cells.append(CELLS[cell](width, hidden_size, bias, device, dtype,
                                              binary_input=binary if layer else binary_input, **options))

    def forward(self, input: Tensor | PackedSequence, state: State | None = None) -> tuple[Tensor | PackedSequence, State]:
        lengths = None
        if isinstance(input, PackedSequence):
            packed = input
            input, lengths = pad_packed_sequence(packed)
            lengths = lengths.to(input.device)
        if input.shape[-1] != self.input_size or input.ndim not in (2, 3):
            raise ValueError(f'BinaryLSTM takes [T, N, {self.input_size}] (or [N, T, ...] with batch_first, or [T, ...]), but '
                             f'got {tuple(input.shape)}')
        batched, batch_first = input.ndim == 3, self.batch_first and lengths is None
        x = (input.transpose(0, 1) if batch_first else input) if batched else input[:, None]
        if state is not None and not batched:
            state = tuple(s[:, None] for s in state)

        last = []
        for layer in range(self.num_layers):
            outs = []
            for index in range(layer * self.directions, (layer + 1) * self.directions):
                cell, backwards = self.cells[index], index % self.directions == 1
                start = None if state is None else tuple(s[index] for s in state)
                states, final = cell.scan(reverse(x, lengths) if backwards else x, start, lengths)
                last.append(final)
                out = cell.emitted(states, x)
                outs.append(reverse(out, lengths) if backwards else out)
            x = outs[0] if self.directions == 1 else torch.cat(outs, -1)
            if self.dropout and layer < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        h, c = (torch.stack(parts) for parts in zip(*last, strict=True))

        if lengths is not None:
            order = packed.sorted_indices
            x, lengths = (x, lengths) if order is None else (x[:, order], lengths[order])
            data = pack_padded_sequence(x, lengths.cpu()).data
            return PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices), (h, c)
        if not batched:
            return x[:, 0], (h[:, 0], c[:, 0])
        return x.transpose(0, 1) if batch_first else x, (h, c)

    def extra_repr(self) -> str:
        return (f'{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, batch_first={self.batch_first}, '
                f'dropout={self.dropout}, bidirectional={self.bidirectional}')


def reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """``[T, N, ...]`` backwards; each sequence by itself, what lies behind its end stays there."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device)[:, None]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x[index, torch.arange(x.shape[1], device=x.device)]
