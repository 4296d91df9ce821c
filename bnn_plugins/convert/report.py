"""What became binary, what stayed float, and why."""

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..layers import BinaryLayer
from .layer_counts import count_layers
from .rules import candidates
from .tables import printed, report_table

# A sign that is the same for more than this share of its inputs carries next to no information.
ONE_SIDED = 0.99


@dataclass
class LayerRow:
    """One convolution, linear or recurrent layer.

    Attributes:
        name: its dotted name.
        kind: the name of its class in the float model.
        binary: whether it has 1-bit (or k-bit) weights now.
        reason: why, or why not.
        parameters: number of its weights.
        macs: multiply-accumulates of one forward pass, by :meth:`BinarizationReport.measure`.
        sign_balance: share of +1 among its binarized inputs, by the same.
    """

    name: str
    kind: str
    binary: bool
    reason: str
    parameters: int
    macs: int | None = None
    sign_balance: float | None = None

    @property
    def one_sided(self) -> bool:
        return self.sign_balance is not None and not 1 - ONE_SIDED <= self.sign_balance <= ONE_SIDED


def weight_count(layer: Any) -> int:
    """How many weights a convolution, a linear or a recurrent layer has, without biases."""
    weights = [layer.weight] if hasattr(layer, 'weight') else [p for p in layer.parameters() if p.ndim > 1]
    return sum(weight.numel() for weight in weights)


@dataclass
class BinarizationReport:
    """The result of :func:`bnn_plugins.binarize_`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rows: every convolution, linear and recurrent layer, in the order of the model.
        replaced: ``{name of a replaced activation: 'ReLU -> Hardtanh: reason'}``.
        traced: whether a forward pass was traced for the structure, and how far.
    """

    rows: list[LayerRow] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    traced: str = ''

    @classmethod
    def of(cls, model: nn.Module) -> 'BinarizationReport':
        """The report of a model that is binary already, natively or by ``binarize_``."""
        return cls([LayerRow(c.name, type(c.module).__name__, isinstance(c.module, BinaryLayer), '', weight_count(c.module))
                    for c in candidates(model)])

    @property
    def binary(self) -> list[LayerRow]:
        return [row for row in self.rows if row.binary]

    def measure(self, model: nn.Module, *inputs: Tensor, batch_stats: bool = False) -> 'BinarizationReport':
        """Run a copy of ``model`` on ``inputs`` once, in evaluation mode, and fill in MACs and sign balance; returns itself.

        Args:
            batch_stats: let batch norms use the statistics of this batch, as in training: running ones of an untrained model
                say nothing about its signs.
        """
        model = copy.deepcopy(model).eval()
        if batch_stats:
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.train()
        counts = count_layers(model, lambda: model(*inputs), lambda m: isinstance(m, _ConvNd | nn.Linear | BinaryLayer))
        for row in self.rows:
            if row.name in counts:
                row.macs, row.sign_balance = counts[row.name].macs, counts[row.name].sign_balance
        return self

    def __rich__(self):
        measured, rows = any(row.macs is not None for row in self.rows), []
        for row in self.rows:
            cells = [row.name, row.kind, 'binary' if row.binary else 'float', row.reason]
            if measured:
                balance = '' if row.sign_balance is None else f'{row.sign_balance:.1%}{" one-sided!" if row.one_sided else ""}'
                cells += ['' if row.macs is None else f'{row.macs:,}', balance]
            rows.append(cells)
        rows += [(name, 'activation', 'replaced', what) for name, what in self.replaced.items()]
        numbers = ('MACs', '+1 share') if measured else ()
        columns = ('layer', 'type', 'bits', 'reason', *numbers)
        caption = '; '.join(filter(None, (self.summary(), self.traced)))
        return report_table('Binarization report', columns, rows, caption, numbers, overflow='fold')

    def summary(self) -> str:
        weights = sum(row.parameters for row in self.rows)
        share = sum(row.parameters for row in self.binary) / weights if weights else 0.0
        return (f'{len(self.binary)} of {len(self.rows)} layers binary, {share:.1%} of their weights; '
                f'{len(self.replaced)} activations replaced')

    def __str__(self) -> str:
        return printed(self)
