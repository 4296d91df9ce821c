"""What the cells with a hidden product share, for vectors and for maps."""

import torch
from torch import Tensor, nn

from ..binarize import unknown
from ..binarize.activations import per_channel
from .expand import spread_copies_
from .recurrence import lstm_scan

GATES = {'soft': '', 'binary_if': 'if', 'binary': 'ifo'}
CANDIDATES = ('tanh', 'sign')
OUTPUTS = ('real', 'binary')

State = tuple[Tensor, Tensor]


class RecurrentCell(nn.Module):
    """Base of latent and packed cells. A subclass has ``units``, the products ``input`` and ``hidden``, and ``bias``.

    ``gates`` other than ``'soft'`` may be trained in two stages: until the share ``soft_until`` of the training, gates and
    candidate are soft (:func:`bnn_plugins.set_progress` tells, :class:`bnn_plugins.engine.BinaryTrainingHook` in a Runner). A
    cell that was told nothing, and a packed one, has the gates of its name.
    """

    def _init_switches(self, gates: str, candidate: str, out: str, soft_until: float, weight_only: bool) -> None:
        for what, value, known in (('gates', gates, GATES), ('candidate', candidate, CANDIDATES), ('out', out, OUTPUTS)):
            if value not in known:
                raise ValueError(unknown(what, value, known))
        if not 0 <= soft_until <= 1:
            raise ValueError(f'soft_until is a share of the training between 0 and 1, but got {soft_until}')
        if out == 'binary' and weight_only:
            raise ValueError("weight_only keeps states real, so there are no signs to emit: use out='real'")
        self.gates, self.candidate, self.out, self.soft_until = gates, candidate, out, soft_until
        self.soft = False

    def set_progress(self, progress: float) -> None:
        self.soft = progress < self.soft_until

    @property
    def hard(self) -> str:
        """Names of the gates that are binary now."""
        return '' if self.soft else GATES[self.gates]

    @property
    def sign_candidate(self) -> bool:
        return self.candidate == 'sign' and not self.soft

    @property
    def first_bit(self) -> float:
        """The hidden state before the first step: -1, or zero where states are real or have no sign."""
        activation = self.hidden.activation
        return -1.0 if activation.bits < 32 and activation.signed else 0.0

    def first_state(self, x: Tensor) -> State:
        """For ``[T, N, C, ...]``."""
        shape, dtype = (x.shape[1], self.units, *x.shape[3:]), torch.promote_types(x.dtype, torch.float32)
        return x.new_full(shape, self.first_bit, dtype=dtype), x.new_zeros(shape, dtype=dtype)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """See the class; the bias of the forget gates is 1, copies of units are spread."""
        bound = self.hidden.fan_in ** -0.5
        for product in (self.input, self.hidden):
            product.draw_(bound)
        if self.bias is not None:
            self.bias.zero_()[self.units:2 * self.units] = 1
            if self.hidden.expand is not None:
                for part in self.bias.chunk(4):
                    spread_copies_(part, self.hidden.expand.replicas, self.hidden.expand.spread)

    def pre_activations(self, x: Tensor) -> Tensor:
        """What the inputs of all steps add to the gates: ``[T, N, C, ...]`` -> ``[T, N, 4 units, ...]``."""
        z = self.input(x.flatten(0, 1))
        z = z if self.bias is None else z + per_channel(self.bias, z.ndim, self.input.channel_dim)
        return z.unflatten(0, x.shape[:2])

    def scan(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """All steps: ``[T, N, C, ...]`` -> hidden states (real) ``[T, N, units, ...]``, and the state after the last step, or
        after step ``lengths`` ``[N]`` of each sequence."""
        h, c = self.first_state(x) if state is None else state
        states, cells = lstm_scan(self.pre_activations(x), h, c, self.hidden, self.hard, self.sign_candidate)
        return states, (last(states, lengths), last(cells, lengths))

    def forward(self, x: Tensor, state: State | None = None) -> State:
        if x.ndim > 1:
            return self.scan(x[None], state)[1]
        _, (h, c) = self.scan(x[None, None], None if state is None else tuple(s[None] for s in state))
        return h[0], c[0]

    def emitted(self, states: Tensor, like: Tensor) -> Tensor:
        """What the next layer sees of the hidden states ``[T, N, units, ...]``; of a model in half precision, in the dtype of
        the input ``like``, although states are float32."""
        out = states if self.out == 'real' else self.hidden.activation(states.flatten(0, 1)).view_as(states)
        return out if self.bias is None else out.to(torch.promote_types(like.dtype, self.bias.dtype))

    def extra_repr(self) -> str:
        stage = f', soft_until={self.soft_until}' if self.soft_until else ''
        return f'units={self.units}, gates={self.gates!r}, candidate={self.candidate!r}, out={self.out!r}{stage}'


def last(values: Tensor, lengths: Tensor | None) -> Tensor:
    """The last of ``[T, N, ...]``, or that of each sequence."""
    if lengths is None:
        return values[-1]
    return values[lengths - 1, torch.arange(values.shape[1], device=values.device)]


def both(norm: str | tuple[str, str]) -> tuple[str, str]:
    """The norms of the input product and of the hidden product."""
    return (norm, norm) if isinstance(norm, str) else tuple(norm)
