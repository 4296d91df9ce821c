"""Packed recurrent cells: the products of their gates from bits, and all steps of a sequence in one call where that fits."""

import torch
from torch import Tensor

import bnn_kernels

from ..binarize import RSign, SignActivation
from ..layers import BinaryConvLSTMCell, BinaryLSTMCell, GateConv2d, GateLinear, RecurrentCell
from ..layers.cells import State, last
from ..layers.conv import convolve_levels
from ..layers.gates import GateProduct, pre_activations
from ..layers.linear import multiply_levels
from .packed import PackedConv2d, PackedLinear, PackedModule


class PackedGates(GateProduct):
    """What both packed products add to a packed layer."""

    def binarized(self) -> Tensor | None:
        """The levels of the weights, where they are multiplied with real numbers."""
        return self._weight(torch.float32) if self.activation.bits == 32 else None

    def forward(self, input: Tensor, binarized: Tensor | None = None) -> Tensor:
        if binarized is None and self.activation.bits < 32:
            return pre_activations(self, super().forward(input))
        weight = (self.binarized() if binarized is None else binarized).to(input.dtype)
        product = convolve_levels if self.channel_dim == 1 else multiply_levels
        return pre_activations(self, self._epilogue(input, product(self, input, weight)))


class PackedGateLinear(PackedGates, PackedLinear):
    """The packed :class:`GateLinear`. ``[..., in_features]`` -> ``[..., gates * units]``."""

    def signature(self) -> str:
        return PackedLinear.signature(self) + GateProduct.signature_suffix(self)


class PackedGateConv2d(PackedGates, PackedConv2d):
    """The packed :class:`GateConv2d`. ``[N, C, H, W]`` -> ``[N, gates * units, H, W]``."""

    def signature(self) -> str:
        return PackedConv2d.signature(self) + GateProduct.signature_suffix(self)


class PackedCell(PackedModule, RecurrentCell):
    """A packed :class:`BinaryLSTMCell` or :class:`BinaryConvLSTMCell`, in the stage with its binary gates."""

    @classmethod
    def take_over_(cls, cell: RecurrentCell) -> None:
        cell.__class__ = cls
        cell.soft = False
        cell.eval()

    def fused(self) -> bool:
        """Whether the whole sequence is one call of the kernels: one bit each, one factor per unit."""
        hidden = self.hidden
        signs = type(hidden.activation) in (SignActivation, RSign)
        scaled = hidden.norm_name != 'none' and hidden.weight_scale is not None  # two factors, rounded one by one
        return (signs and hidden.channel_dim == -1 and hidden.w_bits == 1 and hidden.gain is None and not scaled
                and hidden.norm_name != 'ln' and hidden.folded_scale is None and hidden.copy_shift is None)

    def factor(self) -> Tensor:
        """Of the sums of the hidden product, ``[4 units]``."""
        hidden = self.hidden
        if hidden.norm_name == 'static':
            return hidden.norm.factor()
        if hidden.weight_scale is None:
            return self.hidden.weight_bits.new_ones(4 * self.units, dtype=torch.float32)
        scale = hidden.weight_scale.expand(hidden.weight_bits.shape[1])
        return scale.unflatten(0, (4, 1, -1)).expand(-1, hidden.replicas, -1).flatten()

    def scan(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.fused():
            return super().scan(x, state, lengths)
        h, c = self.first_state(x) if state is None else state
        threshold = self.hidden.activation.threshold()
        steps = bnn_kernels.Recurrence(self.factor()[None], threshold=None if threshold is None else threshold[None],
                                       gates=self.gates, candidate=self.candidate)
        states, _, _, cell = bnn_kernels.binary_lstm(
            self.pre_activations(x).float()[:, :, None], self.hidden.weight_bits, steps,
            bnn_kernels.pack_features(h, threshold)[None], c.float()[None], lengths)
        states = states[:, :, 0]
        return states, (last(states, lengths), cell[0])

    def signature(self) -> str:
        return f'cell of {self.units} units gates {self.gates} candidate {self.candidate} out {self.out}'


GateLinear.packed_class = PackedGateLinear
GateConv2d.packed_class = PackedGateConv2d
BinaryLSTMCell.packed_class = PackedCell
BinaryConvLSTMCell.packed_class = PackedCell
