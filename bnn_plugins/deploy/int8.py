"""``quantize_rest_``: the real layers of a model in int8, calibrated on data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from bnn_kernels.geometry import INT8_TERMS_LIMIT

from ..convert.generic_rules import IMAGE_CHANNELS
from ..convert.tables import printed, report_table
from .fused import fused_parts
from .int8_calibration import METHODS, Calibrated
from .int8_layers import INT8_CLASSES, Int8Layer
from .pack import replace_


@dataclass
class Int8Row:
    """A real layer.

    Attributes:
        name: its dotted name.
        scheme: 'int8: ...', or 'float: reason'.
        error: of its output on the calibration data, relative: the root of the mean squared difference over that of the mean
            square; None where it was not tried.
        bytes: of its weight and what belongs to it, as stored now.
    """

    name: str
    scheme: str
    error: float | None
    bytes: int


@dataclass
class Int8Report:
    """The result of :func:`quantize_rest_`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rows: every convolution and linear layer that is neither binary nor of another library.
    """

    rows: list[Int8Row] = field(default_factory=list)

    @property
    def int8(self) -> list[Int8Row]:
        return [row for row in self.rows if row.scheme.startswith('int8')]

    def summary(self) -> str:
        worst = max((row.error for row in self.int8 if row.error is not None), default=0.0)
        return f'{len(self.int8)} of {len(self.rows)} real layers in int8; largest error of a layer {worst:.2%}'

    def __rich__(self):
        rows = [(row.name or '(the model)', row.scheme, '' if row.error is None else f'{row.error:.2%}', f'{row.bytes:,}')
                for row in self.rows]
        numbers = ('error', 'bytes')
        return report_table('Real layers', ('layer', 'scheme', *numbers), rows, self.summary(), numbers, overflow='fold')

    def __str__(self) -> str:
        return printed(self, 160)


@torch.no_grad()
def quantize_rest_(model: nn.Module, batches: Iterable, *, calibration: str = 'mse', most_error: float = 0.1,
                   keep: Sequence[str] = (), run: Callable[[nn.Module, Any], Any] | None = None) -> Int8Report:
    """Turn the real convolutions and linear layers of a packed model into int8 ones, in place, and switch to evaluation mode.

    Weights get one scale per output channel; inputs are uint8 with one scale and zero point per layer, from what the layer
    sees in ``batches``. It is a verb of its own beside :func:`bnn_plugins.pack_` because it needs data and loses something,
    and packing neither. Afterwards save the model with :func:`bnn_plugins.save_packed`: a real layer takes a quarter. A layer
    stays float where its weight is computed or shared, where it sums too many products, where it is not called, and where its
    error is too large.

    Args:
        model: after ``pack_``, not fused; a float model is taken, too.
        batches: tens of images are enough. Each is a tensor, a tuple of arguments or a dict of them by name. They are gone
            through twice: for the ranges, and for the errors.
        calibration: the ends of a range: ``'minmax'`` of all values, ``'percentile'`` (99.99 % of them inside) or ``'mse'``
            (the least squared error). The default is ``'mse'``: it follows the data where they have outliers, and equals
            ``'minmax'`` where they have none. A convolution of an image (4 channels at most) takes ``'minmax'`` in any case:
            pixels have no outliers, and what is cut off are the lights.
        most_error: of a layer's output, relative; a layer with a larger one stays float.
        keep: names of layers, with wildcards, that stay float.
        run: what is called with the model and each batch, for example ``lambda model, batch: model.test_step(batch)``.

    Raises:
        ValueError: an unknown calibration, a fused model, no batch, or no real layer to turn.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), BinaryConv2d(16, 32, 3, method='xnor')).eval()
        >>> report = quantize_rest_(pack_(model), [torch.randn(4, 3, 16, 16)])
        >>> [row.name for row in report.int8], type(model[0]).__name__
        (['0'], 'Int8Conv2d')
    """
    if calibration not in METHODS:
        nearest = get_close_matches(calibration, METHODS, n=1, cutoff=0)[0]
        raise ValueError(f'Unknown calibration {calibration!r}: did you mean {nearest!r}? Known are {", ".join(METHODS)}.')
    if any(fused_parts(model)):
        raise ValueError('the model is fused: quantize_rest_ it first, then fuse_')
    batches, run = list(batches), run or call
    if not batches:
        raise ValueError('batches holds nothing to calibrate with: give tens of images')
    layers = {name: module for name, module in model.named_modules() if type(module) in INT8_CLASSES}
    if not layers:
        raise ValueError(f'this {type(model).__name__} has no real convolution or linear layer to turn into int8')
    model.eval()
    kept = {name: why for name, layer in layers.items() if (why := obstacle(model, name, layer, keep))}
    seen = {layer: Calibrated() for name, layer in layers.items() if name not in kept}
    watch(model, batches, run, {layer: ranges.add for layer, ranges in seen.items()})
    ways = {layer: 'minmax' if getattr(layer, 'in_channels', math.inf) <= IMAGE_CHANNELS else calibration for layer in seen}
    forms = {layer: INT8_CLASSES[type(layer)].from_latent(layer, *ranges.quantization(ways[layer]))
             for layer, ranges in seen.items() if ranges.seen}
    errors = {layer: Error(form) for layer, form in forms.items()}
    watch(model, batches, run, {layer: error.add for layer, error in errors.items()})
    good = {layer: form for layer, form in forms.items() if errors[layer].relative <= most_error}
    report = Int8Report([row(name, layer, kept.get(name, ''), good.get(layer), errors.get(layer), ways.get(layer, ''))
                         for name, layer in layers.items()])
    replace_(model, good)
    return report


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def watch(model: nn.Module, batches: Iterable, run: Callable, hooks: dict[nn.Module, Callable]) -> None:
    """Run the batches, and call ``hook(input, output)`` at each call of its layer."""
    handles = [layer.register_forward_hook(lambda _, inputs, output, hook=hook: hook(inputs[0], output) if inputs else None)
               for layer, hook in hooks.items()]
    try:
        for batch in batches:
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()


class Error:
    """The difference between a layer and its int8 form, over its calls."""

    def __init__(self, form: Int8Layer):
        self.form, self.squares, self.total = form, 0.0, 0.0

    def add(self, input: Tensor, output: Tensor) -> None:
        difference = self.form.forward(input).double() - output.double()  # its hooks are those of the layer
        self.squares += float(difference.square().sum())
        self.total += float(output.double().square().sum())

    @property
    def relative(self) -> float:
        return (self.squares / self.total) ** 0.5 if self.total else float(self.squares > 0)


def obstacle(model: nn.Module, name: str, layer: nn.Module, keep: Sequence[str]) -> str:
    """Why a layer stays float before anything is measured, or ''."""
    if any(fnmatchcase(name, pattern) for pattern in keep):
        return 'asked for'
    if 'weight' not in layer._parameters:
        return 'its weight is computed'
    if layer is model:
        return 'it is the model itself'
    if layer.weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f'it is {layer.weight.dtype}'
    terms = INT8_CLASSES[type(layer)].rows(layer)[0].numel()
    if terms > INT8_TERMS_LIMIT:
        return f'it sums {terms} products, and int32 holds {INT8_TERMS_LIMIT}'
    if getattr(layer, 'groups', 1) > 1 and terms == math.prod(layer.kernel_size):
        return 'it is depthwise: float32 is faster than int8, which multiplies four channels of a group at a time'
    owners = [other for other, module in model.named_modules() if module is not layer
              and any(parameter is layer.weight for parameter in module._parameters.values())]
    return f'its weight is that of {owners[0]}, too' if owners else ''


def row(name: str, layer: nn.Module, why: str, form: Int8Layer | None, error: Error | None, calibration: str) -> Int8Row:
    """Its line in the report; ``form`` is what takes its place."""
    tensors = [*layer.parameters()] if form is None else [*form.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if form is not None and error is not None:
        return Int8Row(name, f'int8: weight per channel, input uint8 by {calibration}', error.relative, size)
    if error is not None:
        return Int8Row(name, 'float: the error is too large', error.relative, size)
    return Int8Row(name, f'float: {why or "it was not called"}', None, size)
