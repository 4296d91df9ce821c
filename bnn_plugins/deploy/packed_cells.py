"""Packed recurrent cells: the products of their gates from bits."""

import torch
from torch import Tensor

from ..layers import BinaryConvLSTMCell, BinaryLSTMCell, GateConv2d, GateLinear, RecurrentCell
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

    def signature(self) -> str:
        return f'cell of {self.units} units gates {self.gates} candidate {self.candidate} out {self.out}'


GateLinear.packed_class = PackedGateLinear
GateConv2d.packed_class = PackedGateConv2d
BinaryLSTMCell.packed_class = PackedCell
BinaryConvLSTMCell.packed_class = PackedCell
