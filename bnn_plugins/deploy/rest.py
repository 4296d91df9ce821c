"""``quantize_rest_``: the real layers of a model in int8 or bfloat16, calibrated on data."""

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
from .bfloat16_layers import BFLOAT16_CLASSES
from .fused import fused_parts
from .int8_calibration import METHODS, Calibrated
from .int8_layers import INT8_CLASSES, Int8Pixels2d, whole_pixels
from .pack import replace_
from .rest_layer import RestLayer

RESTS = ('float32', 'bfloat16', 'int8')
PIXEL = 0.05  # how far the pixels that a normalised image stands for may be from whole numbers


@dataclass
class RestRow:
    """A real layer.

    Attributes:
        name: its dotted name.
        scheme: 'int8: ...', 'bfloat16: ...', or 'float: reason'.
        error: of its output on the calibration data, relative: the root of the mean squared difference over that of the mean
            square; None where it was not tried.
        bytes: of its weight and what belongs to it, as stored now.
    """

    name: str
    scheme: str
    error: float | None
    bytes: int


@dataclass
class RestReport:
    """The result of :func:`quantize_rest_`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rest: what the layers were to become.
        rows: every convolution and linear layer that is neither binary nor of another library.
    """

    rest: str
    rows: list[RestRow] = field(default_factory=list)

    @property
    def replaced(self) -> list[RestRow]:
        return [row for row in self.rows if not row.scheme.startswith('float:')]

    def summary(self) -> str:
        worst = max((row.error for row in self.replaced if row.error is not None), default=0.0)
        return f'{len(self.replaced)} of {len(self.rows)} real layers in {self.rest}; largest error of a layer {worst:.2%}'

    def __rich__(self):
        rows = [(row.name or '(the model)', row.scheme, '' if row.error is None else f'{row.error:.2%}', f'{row.bytes:,}')
                for row in self.rows]
        numbers = ('error', 'bytes')
        return report_table('Real layers', ('layer', 'scheme', *numbers), rows, self.summary(), numbers, overflow='fold')

    def __str__(self) -> str:
        return printed(self, 160)


@torch.no_grad()
def quantize_rest_(model: nn.Module, batches: Iterable, rest: str = 'int8', *, calibration: str = 'mse',
                   most_error: float = 0.1, keep: Sequence[str] = (), image: Mapping[str, Any] | None = None,
                   run: Callable[[nn.Module, Any], Any] | None = None) -> RestReport:
    """Turn the real convolutions and linear layers of a packed model into int8 or bfloat16 ones, in place, and switch to
    evaluation mode.

    In int8, weights get one scale per output channel; inputs are uint8 with one scale and zero point per layer, from what the
    layer sees in ``batches``. In bfloat16, weights and inputs are rounded, sums and biases are float32. It is a verb of its
    own beside :func:`bnn_plugins.pack_` because it needs data and loses something, and packing neither. Afterwards save the
    model with :func:`bnn_plugins.save_packed`: a real layer takes a quarter, or half. A layer stays float where its weight is
    computed or shared, where it sums too many products, where it is not called, and where its error is too large.

    Args:
        model: after ``pack_``, not fused; a float model is taken, too.
        batches: tens of images are enough. Each is a tensor, a tuple of arguments or a dict of them by name. They are gone
            through twice: for the ranges, and for the errors.
        rest: ``'int8'`` or ``'bfloat16'``.
        calibration: of int8, the ends of a range: ``'minmax'`` of all values, ``'percentile'`` (99.99 % of them inside) or
            ``'mse'`` (the least squared error). The default is ``'mse'``: it follows the data where they have outliers, and
            equals ``'minmax'`` where they have none. A convolution of an image (4 channels at most) takes ``'minmax'`` in any
            case: pixels have no outliers, and what is cut off are the lights.
        most_error: of a layer's output, relative; a layer with a larger one stays float.
        keep: names of layers, with wildcards, that stay float.
        image: of int8, ``dict(mean=..., std=...)``, with which the pixels of the batches were normalised, per channel or one
            for all. A convolution that reads them stores whole pixels, and takes images of uint8 as they are, too: mean and
            deviation are in its weight.
        run: what is called with the model and each batch, for example ``lambda model, batch: model.test_step(batch)``.

    Raises:
        ValueError: an unknown rest or calibration, a fused model, no batch, or no real layer to turn.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), BinaryConv2d(16, 32, 3, method='xnor')).eval()
        >>> report = quantize_rest_(pack_(model), [torch.randn(4, 3, 16, 16)])
        >>> [row.name for row in report.replaced], type(model[0]).__name__
        (['0'], 'Int8Conv2d')
    """
    for what, value, known in (('rest', rest, RESTS[1:]), ('calibration', calibration, METHODS)):
        if value not in known:
            nearest = get_close_matches(value, known, n=1, cutoff=0)[0]
            raise ValueError(f'Unknown {what} {value!r}: did you mean {nearest!r}? Known are {", ".join(known)}.')
    if any(fused_parts(model)):
        raise ValueError('the model is fused: quantize_rest_ it first, then fuse_')
    batches, run = list(batches), run or call
    if not batches:
        raise ValueError('batches holds nothing to calibrate with: give tens of images')
    layers = {name: module for name, module in model.named_modules() if type(module) in INT8_CLASSES}
    if not layers:
        raise ValueError(f'this {type(model).__name__} has no real convolution or linear layer to turn into {rest}')
    model.eval()
    kept = {name: why for name, layer in layers.items() if (why := obstacle(model, name, layer, keep, rest))}
    free = [layer for name, layer in layers.items() if name not in kept]
    if rest == 'int8':
        forms = int8_forms(model, batches, run, free, calibration, image)
    else:
        forms = {layer: (BFLOAT16_CLASSES[type(layer)].from_latent(layer), 'bfloat16: weight and input') for layer in free}
    errors = {layer: Error(form) for layer, (form, _) in forms.items()}
    watch(model, batches, run, {layer: error.add for layer, error in errors.items()})
    good = {layer: form for layer, (form, _) in forms.items() if errors[layer].calls and errors[layer].relative <= most_error}
    report = RestReport(rest, [row(name, layer, kept.get(name, ''), good.get(layer), errors.get(layer), forms.get(layer))
                               for name, layer in layers.items()])
    replace_(model, good)
    return report


def int8_forms(model: nn.Module, batches: Iterable, run: Callable, layers: Sequence[nn.Module], calibration: str,
               image: Mapping[str, Any] | None) -> dict[nn.Module, tuple[RestLayer, str]]:
    """The int8 forms of layers, for the inputs that they have in ``batches``, and how these are stored, in words."""
    seen = {layer: Calibrated() for layer in layers}
    pixels = {layer: Pixels(**image) for layer in layers if image is not None}
    pixels = {layer: asked for layer, asked in pixels.items() if Int8Pixels2d.fits(layer, len(asked.mean))}
    watch(model, batches, run, {layer: ranges.add for layer, ranges in seen.items()})
    watch(model, batches, run, {layer: asked.add for layer, asked in pixels.items()})
    forms = {}
    for layer, ranges in seen.items():
        if layer in pixels and pixels[layer].whole:
            form, how = Int8Pixels2d.from_latent(layer, **image), 'the pixels'
        elif ranges.seen:
            how = 'minmax' if getattr(layer, 'in_channels', math.inf) <= IMAGE_CHANNELS else calibration
            form, how = INT8_CLASSES[type(layer)].from_latent(layer, *ranges.quantization(how)), f'by {how}'
        else:
            continue
        forms[layer] = form, f'int8: weight per channel, input uint8 {how}'
    return forms


def call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return model(batch)
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def watch(model: nn.Module, batches: Iterable, run: Callable, hooks: dict[nn.Module, Callable]) -> None:
    """Run the batches, and call ``hook(input, output)`` at each call of its layer."""
    handles = [layer.register_forward_hook(lambda _, inputs, output, hook=hook: hook(inputs[0], output) if inputs else None)
               for layer, hook in hooks.items()]
    try:
        for batch in batches if handles else ():
            run(model, batch)
    finally:
        for handle in handles:
            handle.remove()


class Pixels:
    """Whether what a layer reads are the pixels of images, normalised, and zeros between them."""

    def __init__(self, mean, std):
        self.mean, self.std = (torch.as_tensor(value, dtype=torch.float32).flatten() for value in (mean, std))
        self.called, self.apart = False, 0.0

    @property
    def whole(self) -> bool:
        return self.called and self.apart <= PIXEL

    def add(self, x: Tensor, _: Tensor) -> None:
        pixels = x.float() * self.std.to(x.device).view(-1, 1, 1) + self.mean.to(x.device).view(-1, 1, 1)
        apart = (pixels - whole_pixels(pixels)).abs()[x != 0]
        self.called, self.apart = True, max(self.apart, float(apart.max()) if apart.numel() else 0.0)


class Error:
    """The difference between a layer and its form in fewer bits, over its calls."""

    def __init__(self, form: RestLayer):
        self.form, self.squares, self.total, self.calls = form, 0.0, 0.0, 0

    def add(self, input: Tensor, output: Tensor) -> None:
        difference = self.form.forward(input).double() - output.double()  # its hooks are those of the layer
        self.squares += float(difference.square().sum())
        self.total += float(output.double().square().sum())
        self.calls += 1

    @property
    def relative(self) -> float:
        return (self.squares / self.total) ** 0.5 if self.total else float(self.squares > 0)


def obstacle(model: nn.Module, name: str, layer: nn.Module, keep: Sequence[str], rest: str) -> str:
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
    if rest == 'int8' and terms > INT8_TERMS_LIMIT:
        return f'it sums {terms} products, and int32 holds {INT8_TERMS_LIMIT}'
    owners = [other for other, module in model.named_modules() if module is not layer
              and any(parameter is layer.weight for parameter in module._parameters.values())]
    return f'its weight is that of {owners[0]}, too' if owners else ''


def row(name: str, layer: nn.Module, why: str, good: RestLayer | None, error: Error | None,
        form: tuple[RestLayer, str] | None) -> RestRow:
    """Its line in the report; ``good`` is what takes its place."""
    tensors = [*layer.parameters()] if good is None else [*good.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    if good is not None and error is not None and form is not None:
        return RestRow(name, form[1], error.relative, size)
    if error is not None and error.calls:
        return RestRow(name, 'float: the error is too large', error.relative, size)
    return RestRow(name, f'float: {why or "it was not called"}', None, size)
