"""Packed recurrent cells: the products of their gates from bits, and all steps of a sequence in one call where that fits."""

from typing import Self

import torch
from torch import Tensor

import bnn_kernels
from bnn_kernels.derived import Derived

from ..binarize import RSign, SignActivation
from ..layers import BinaryConvLSTMCell, BinaryLSTMCell, GateConv2d, GateLinear, RecurrentCell
from ..layers.cells import State, last
from ..layers.conv import convolve_levels
from ..layers.gates import GateProduct, pre_activations
from ..layers.linear import multiply_levels
from .packed import PackedConv2d, PackedLinear, PackedModule, has_hooks, register_packed


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


@register_packed(GateLinear)
class PackedGateLinear(PackedGates, PackedLinear):
    """The packed :class:`GateLinear`. ``[..., in_features]`` -> ``[..., gates * units]``."""

    def signature(self) -> str:
        return super().signature() + self.signature_suffix()


@register_packed(GateConv2d)
class PackedGateConv2d(PackedGates, PackedConv2d):
    """The packed :class:`GateConv2d`. ``[N, C, H, W]`` -> ``[N, gates * units, H, W]``."""

    def signature(self) -> str:
        return super().signature() + self.signature_suffix()


def is_integer(product: PackedGates) -> bool:
    """Whether a packed product is one sum of signs with one factor per unit, as the kernels take it."""
    signs = product.activation.signed and product.activation.bits == 1
    scaled = product.norm_name != 'none' and product.weight_scale is not None  # two factors, rounded one by one
    return (signs and product.channel_dim == -1 and product.w_bits == 1 and product.gain is None and not scaled
            and product.norm_name != 'ln' and product.folded_scale is None and product.copy_shift is None)


def factor(product: PackedGates) -> Tensor:
    """Of the sums of such a product, ``[4 units]``."""
    if product.norm_name == 'static':
        return product.norm.factor()
    filters = product.weight_bits.shape[1]
    if product.weight_scale is None:
        return product.weight_bits.new_ones(filters * product.replicas, dtype=torch.float32)
    scale = product.weight_scale.expand(filters).unflatten(0, (product.gates, 1, -1))
    return scale.expand(-1, product.replicas, -1).flatten()


def sources(product: PackedGates) -> list[Tensor | None]:
    """What :func:`factor` and the threshold of a product may be made of, and what says where."""
    return [product.weight_bits, product.weight_scale, getattr(product.norm, 'weight', None),
            getattr(product.activation, 'shift', None)]


@register_packed(BinaryLSTMCell)
@register_packed(BinaryConvLSTMCell)
class PackedCell(PackedModule, RecurrentCell):
    """A packed :class:`BinaryLSTMCell` or :class:`BinaryConvLSTMCell`, in the stage with its binary gates.

    Where both sides of the hidden product are plain signs, all steps of a sequence are one call of
    :func:`bnn_kernels.binary_lstm`, unless the products have forward hooks.
    """

    @classmethod
    def from_latent(cls, cell: RecurrentCell) -> Self:
        packed = super().from_latent(cell)
        packed.soft = False
        return packed

    def scan(self, x: Tensor, state: State | None = None, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        plain = is_integer(self.hidden) and type(self.hidden.activation) in (SignActivation, RSign)
        if not plain or has_hooks(self.hidden) or has_hooks(self.input):
            return super().scan(x, state, lengths)
        h, c = self.first_state(x) if state is None else state
        counts = is_integer(self.input) and x.dtype == torch.float32  # scale and bias are left to the kernel
        steps = self.steps(counts) if bnn_kernels.PreparedOp.direct(x) else self.new_steps(counts)
        inputs = self.input._accumulate(x) if counts else self.pre_activations(x).float()
        words = bnn_kernels.pack_features(h, None if steps.threshold is None else steps.threshold[0])
        states, _, _, cell = bnn_kernels.binary_lstm(inputs[:, :, None], self.hidden.weight_bits, steps, words[None],
                                                     c.float()[None], lengths)
        states = states[:, :, 0]
        return states, (last(states, lengths), cell[0])

    def new_steps(self, counts: bool) -> bnn_kernels.Recurrence:
        scale_x, bias = (factor(self.input), self.bias) if counts else (None, None)
        vectors = (None if v is None else v.float()[None]
                   for v in (factor(self.hidden), scale_x, bias, self.hidden.activation.threshold()))
        return bnn_kernels.Recurrence(*vectors, gates=self.gates, candidate=self.candidate)

    def steps(self, counts: bool) -> bnn_kernels.Recurrence:
        """``new_steps``, made once for the values that it is made of: so kernels prepare the vectors once, too."""
        tensors = [t for t in (*sources(self.hidden), *sources(self.input), self.bias) if t is not None]
        return cell_steps(tensors, (counts, self.gates, self.candidate, self.hidden.replicas), self, counts)

    def signature(self) -> str:
        return f'cell of {self.units} units gates {self.gates} candidate {self.candidate} out {self.out}'


@Derived
def cell_steps(cell: PackedCell, counts: bool) -> bnn_kernels.Recurrence:
    """``cell.new_steps(counts)``; copies, as some of its vectors are the cell's own."""
    steps = cell.new_steps(counts)
    return steps._replace(**{name: v.clone() for name, v in steps._asdict().items() if isinstance(v, Tensor)})
