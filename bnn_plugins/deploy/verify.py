"""``verify``: a packed model, fused or not, against the latent model that it was made from, layer by layer."""

import copy
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn

from bnn_kernels.layout import unpack_bits

from ..convert.tables import printed, report_table
from ..layers import BinaryLayer
from ..layers.expand import expand_input
from .choices import distance, goes_on_alike, recorded
from .drift import ROUNDINGS, Drift, drift_of, read_levels, read_packed_levels, tolerance_of
from .fused import fused_parts, fused_steps
from .fused.fold import sign_threshold
from .fused.graph import Nothing, graph_module, trace_region
from .fused.region import FusedForward
from .fused.steps import Step, signs_of
from .fused.write import Place
from .int8_layers import UNSIGNED
from .pack import replace_
from .packed import PackedConv2d, PackedLayer
from .rest_layer import RestLayer
from .rest_layers import REST_CLASSES

WHOLE = ('accumulators', *REST_CLASSES)  # kinds of rows that count no signs
STEPS = 16  # of eight bits, of their whole range: how far values of an int8 rest may be apart that rounding has made different


@dataclass
class LayerCheck:
    """One layer or fused step, summed over its calls.

    Attributes:
        name: of the layer.
        kind: ``'accumulators'``; ``'int8'``, ``'int8-pixels'`` or ``'bfloat16'`` of a real layer; or what the step fuses.
        positions: how many accumulators, values of a real layer, or signs were compared.
        different: accumulators that are not equal, or signs that flipped.
        violations: those among them that must not be: any accumulator, a sign or a value outside of the bound.
        worst: largest distance from the latent model in units of the bound; 0 for integers.
    """

    name: str
    kind: str
    positions: int = 0
    different: int = 0
    violations: int = 0
    worst: float = 0.0


@dataclass
class VerificationReport:
    """The result of :func:`verify`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rows: one for each binary layer, and one for each fused step.
        outputs: largest distance between the outputs of both models.
        relative: the same in units of the largest value of that output; ``inf`` for outputs of other shapes.
        drift: signs that are others when both models run by themselves, from input to output. Rounding turns a first one, and
            layers behind it see other inputs.
        tolerance: how large ``relative`` may be by rounding alone.
        choices: the outputs are others by more than that, but the latent model computes the same where it goes on from what
            each fused part of the packed one returned, which is within rounding: behind a part the model sorts, or takes the
            largest, of nearly equal values.
        rest: of a model with a rest in int8 or bfloat16: how far it takes the outputs, as ``relative``; what is
            lost, and no error.
    """

    rows: list[LayerCheck] = field(default_factory=list)
    outputs: float = 0.0
    relative: float = 0.0
    drift: Drift = field(default_factory=Drift)
    tolerance: float = 0.0
    choices: bool = False
    rest: float = 0.0

    @property
    def ok(self) -> bool:
        """Nothing is outside of its bound, and the outputs are the same within rounding, or it is explained why not."""
        return self.explained and not any(row.violations for row in self.rows)

    @property
    def explained(self) -> bool:
        """The outputs are the same within rounding, or signs that are near to their thresholds, or choices, explain them."""
        return self.choices or (not self.drift.far and (self.relative <= self.tolerance or self.drift.signs > 0))

    @property
    def flips(self) -> int:
        return sum(row.different for row in self.rows if row.kind not in WHOLE)

    @property
    def signs(self) -> int:
        return sum(row.positions for row in self.rows if row.kind not in WHOLE)

    def add(self, other: 'VerificationReport') -> None:
        """Count what ``other`` counted, too."""
        mine = {(row.name, row.kind): row for row in self.rows}
        for row in other.rows:
            if (row.name, row.kind) not in mine:
                self.rows.append(copy.copy(row))
                continue
            total = mine[row.name, row.kind]
            for count in ('positions', 'different', 'violations'):
                setattr(total, count, getattr(total, count) + getattr(row, count))
            total.worst = max(total.worst, row.worst)
        self.choices = self.explained and other.explained and (self.choices or other.choices)
        self.outputs, self.relative = max(self.outputs, other.outputs), max(self.relative, other.relative)
        self.tolerance, self.rest = max(self.tolerance, other.tolerance), max(self.rest, other.rest)
        self.drift = Drift(self.drift.signs + other.drift.signs, self.drift.far + other.drift.far,
                           self.drift.first or other.drift.first)

    def summary(self) -> str:
        layers = [row for row in self.rows if row.kind == 'accumulators']
        wrong, drift = sum(row.violations for row in self.rows), ''
        real = [row for row in self.rows if row.kind in REST_CLASSES]
        kinds = ' and '.join(sorted({row.kind for row in real}))
        rest = (f'{len(real)} real layers in {kinds}, at most {max(row.worst for row in real):.0%} of what rounding may be, '
                f'which takes outputs {self.rest:.1%} away; ') if real else ''
        if self.drift.signs:
            where = f'{self.drift.far:,} too far from their threshold' if self.drift.far else 'within rounding'
            drift = f'in a whole run {self.drift.signs:,} signs are others, the first, in {self.drift.first}, {where}; '
        why = 'another choice among nearly equal values' if self.choices else 'the signs'
        verdict = 'NOT OK' if not self.ok else 'ok' if self.relative <= self.tolerance else f'explained by {why}'
        return (f'{len(layers)} layers, {sum(row.positions for row in layers):,} accumulators, '
                f'{sum(row.different for row in layers):,} different; {self.flips:,} of {self.signs:,} signs flipped; '
                f'{wrong:,} violations; {rest}{drift}outputs differ by at most {self.outputs:.3g}: {verdict}')

    def __rich__(self):
        rows = [(row.name, row.kind, f'{row.positions:,}', f'{row.different:,}', f'{row.violations:,}', f'{row.worst:.3f}')
                for row in self.rows]
        numbers = ('compared', 'different', 'violations', 'worst / bound')
        return report_table('Verification', ('layer', 'what', *numbers), rows, self.summary(), numbers, overflow='fold')

    def __str__(self) -> str:
        return printed(self, 160)


@torch.no_grad()
def verify(latent: nn.Module, packed: nn.Module, *inputs, **more) -> VerificationReport:
    r"""Compare a packed model with the latent one, layer by layer, on the values that the *latent* model has there.

    So each layer is judged by itself, and a sign that may flip does not make the layers behind it look wrong. Then both run by
    themselves: their outputs must be the same within rounding, or differ because of signs, the first of which (in the order of
    the layers) lie within rounding of their thresholds, or because of a choice behind a fused part (``report.choices``).

    - Each binary layer: given the same input, the accumulators of both are equal integers.
    - Each fused step: its real-valued stream ``v`` is that of the latent model within
      :math:`16\,\epsilon\,(|a s| + |b| + |x| + |\gamma|)\max(1, |\beta|) + 16\,\epsilon\,|\zeta|`, and a sign is another only
      where the latent value is this close to its threshold. :math:`\epsilon` is that of the dtype (2^-23 for float32), ``a``
      the accumulator, ``s`` the folded scale, ``b`` the sum of the magnitudes folded into the bias, ``x`` the shortcut; 16
      counts the roundings of both ways to compute it. Sums of real convolutions may also round once for each term.
    - Each real layer in int8 or bfloat16 (:func:`bnn_plugins.quantize_rest_`): its output is that of the float layer within
      what the rounding of its weights and of its input adds up to; in int8 :math:`\\sum |x - x_q| |w| + |x_q| s / 2`, with
      ``s`` the step of a weight, in bfloat16 :math:`4 \cdot 2^{-8} \sum |x| |w|`. All else is compared with the latent
      model whose real layers are these: what they lose is told by ``report.rest``.

    Args:
        latent: the latent model, in evaluation mode.
        packed: the same after ``pack_`` (of a copy), or ``load_packed_``, with or without ``fuse_``.
        inputs, more: what both are called with.

    Returns:
        counts per layer; ``report.ok`` says that nothing is outside of its bound.

    Raises:
        ValueError: when the two models have not the same binary layers, or ``latent`` is in training mode.

    Example:
        >>> latent = nn.Sequential(BinaryConv2d(16, 16, 3, method='bireal'), nn.BatchNorm2d(16)).eval()
        >>> report = verify(latent, pack_(copy.deepcopy(latent)), torch.randn(1, 16, 8, 8))
        >>> report.ok
        True
    """
    layers = matching_layers(latent, packed)
    report = VerificationReport()
    rest = {name: module for name, module in packed.named_modules() if isinstance(module, RestLayer)}
    if rest:
        latent, report = compare_rest(latent, rest, inputs, more)
        layers = matching_layers(latent, packed)
    rows: dict[tuple[str, str], LayerCheck] = {}

    def row(name: str, kind: str) -> LayerCheck:
        return rows.setdefault((name, kind), LayerCheck(name, kind))

    with ExitStack() as stack:
        for name, (one, other) in layers.items():
            if one.activation.bits == 32:  # no integers: real numbers times the levels of the weights
                continue
            stack.callback(one.register_forward_hook(
                lambda _, args, __, one=one, other=other, name=name: compare_layer(row(name, 'accumulators'), one, other,
                                                                                   args[0])).remove)
        for name, part in fused_parts(packed):
            stack.enter_context(watched(latent.get_submodule(name), part, row))
        streams = {step.stream for _, step in fused_steps(packed)}
        report.tolerance = tolerance_of(*streams, *{t.dtype for t in latent.parameters() if t.is_floating_point()} - {
            torch.float64}) if streams else 0.0
        report.tolerance = max(report.tolerance, STEPS / UNSIGNED if rest and streams else 0.0)
        levels = stack.enter_context(read_levels(layers, report.tolerance))
        expected = latent(*inputs, **more)
    with read_packed_levels(packed) as read, recorded(packed) as returned:
        found = packed(*inputs, **more)
    report.drift = drift_of(levels, read, packed)
    report.outputs, report.relative = distance(expected, found)
    if not report.explained:
        report.choices = goes_on_alike(latent, returned, found, lambda: latent(*inputs, **more), report.tolerance)
    report.rows += rows.values()
    return report


def compare_rest(latent: nn.Module, rest: dict[str, RestLayer], inputs: tuple, more: dict) -> tuple[nn.Module,
                                                                                                   VerificationReport]:
    """A copy of the latent model with these real layers, and a report of them alone."""
    real, report = {name: latent.get_submodule(name) for name in rest}, VerificationReport()
    for name, layer in real.items():
        if REST_CLASSES[rest[name].kind].get(type(layer)) is not type(rest[name]):
            raise ValueError(f'verify takes the same model twice, but the layer {name!r} is {rest[name].kind} in the second '
                             'and no real layer in the first')
    with ExitStack() as stack:
        for name, layer in real.items():
            report.rows.append(LayerCheck(name, rest[name].kind))
            stack.callback(layer.register_forward_hook(
                lambda layer, args, out, check=report.rows[-1], other=rest[name]: compare_rest_layer(
                    check, layer, other, args[0], out)).remove)
        expected = latent(*inputs, **more)
    changed = copy.deepcopy(latent)
    changed = replace_(changed, {changed.get_submodule(name): other for name, other in rest.items()})
    report.rest = distance(expected, changed(*inputs, **more))[1]
    return changed, report


def compare_rest_layer(check: LayerCheck, layer: nn.Module, other: RestLayer, x: Tensor, expected: Tensor) -> None:
    """A real layer and its form in fewer bits for the same input; see :func:`verify`."""
    bound = other.bound(layer, x) * (1 + ROUNDINGS * torch.finfo(torch.float32).eps)
    bound = bound + ROUNDINGS * torch.finfo(expected.dtype).eps * expected.abs() + torch.finfo(torch.float32).tiny
    check.positions += expected.numel()
    compare_values(check, other.forward(x), expected, bound)


def matching_layers(latent: nn.Module, packed: nn.Module) -> dict[str, tuple[BinaryLayer, PackedLayer]]:
    ones = {name: module for name, module in latent.named_modules() if isinstance(module, BinaryLayer)}
    others = {name: module for name, module in packed.named_modules() if isinstance(module, PackedLayer)}
    if not ones:
        raise ValueError(f'verify takes the latent model first, but this {type(latent).__name__} has no binary layer')
    for name in sorted(ones.keys() ^ others.keys()):
        raise ValueError(f'verify takes the same model twice, but the layer {name!r} is '
                         f'{"not packed in the second" if name in ones else "not binary in the first"}')
    if any(module.training for module in latent.modules()):
        raise ValueError('the latent model is in training mode: call latent.eval() first')
    return {name: (ones[name], others[name]) for name in ones}


def compare_layer(row: LayerCheck, one: BinaryLayer, other: PackedLayer, x: Tensor) -> None:
    """The accumulators of both layers for the same input, as integers."""
    for before in (getattr(one, 'padded', None), getattr(one, 'pre_norm', None)):  # what a layer does to its input first
        x = x if before is None else before(x)
    seen = expand_input(other, x)
    levels, _ = one.weight_binarizer(one.filters)
    expected = one._multiply(one.activation(expand_input(one, x)), levels)
    found = other._accumulate(seen)
    row.positions += found.numel()
    different = int((expected != found).sum()) if expected.shape == found.shape else found.numel()
    row.different += different
    row.violations += different


@contextmanager
def watched(module: nn.Module, part: FusedForward, row: Callable[[str, str], LayerCheck]):
    """While the latent model runs, every call of ``module`` (a part that is fused in the packed model) is compared."""
    plan = part.up_to_date().plan
    if isinstance(module, BinaryLayer):
        (place,) = plan.places
        handle = module.register_forward_hook(
            lambda _, args, out: compare_step(row, part, place, {place.input: args[0], place.result: out}))
        yield
        handle.remove()
        return
    recorder = recorder_of(module, part)
    run = getattr(module, part.method)

    def call(*args, **kwargs):
        nonlocal recorder
        plan, entry = part.plan, part.entry(args, kwargs)
        if entry is None or entry.plan is not plan:
            return run(*args, **kwargs)
        recorder.values.clear()
        try:
            out = recorder.run(*entry.tensors(args, kwargs))
        except Nothing as found:
            part.trace_again(plan, found)
            recorder = recorder_of(module, part)
            return call(*args, **kwargs) if part.plan is not plan else run(*args, **kwargs)
        for place in plan.places:
            compare_step(row, part, place, recorder.values)
        return out

    with patch.object(module, part.method, call):
        yield


def recorder_of(module: nn.Module, part: FusedForward) -> 'ValueRecorder':
    """Runs ``module`` of the latent model as ``part`` was traced."""
    plan = part.plan
    _, graph = trace_region(module, (BinaryLayer, RestLayer), part.method, plan.traced, plan.nothings)
    return ValueRecorder(graph_module(module, graph), plan.places)


class ValueRecorder(fx.Interpreter):
    """Runs a graph and keeps the values that steps stand between; what is changed in place later is kept as it was."""

    def __init__(self, module: fx.GraphModule, places: list[Place]):
        super().__init__(module)
        self.wanted = {name for place in places for name in (place.input, *place.others, place.result)}
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node):
        value = super().run_node(n)
        if n.name in self.wanted:
            self.values[n.name] = value.clone()
        return value


def compare_step(row: Callable[[str, str], LayerCheck], part: FusedForward, place: Place, values: dict[str, Tensor]) -> None:
    """One fused step on the values of the latent model."""
    step, x, others = place.step, values[place.input], [values[name] for name in place.others]
    shortcut = others if step.adds_several else next(iter(others), None)
    expected = values[place.result] if place.channels is None else values[place.result][:, place.channels]
    check = row(part.plan.full(step.label), step.text)
    error_bound = step.error_bound(x, shortcut, expected) + torch.finfo(torch.float32).tiny
    signs, stream = step.on_values(x, shortcut)
    if stream is not None:
        compare_values(check, stream, expected, error_bound)
    if signs is not None:
        compare_signs(check, step, signs, expected, error_bound)


def compare_values(check: LayerCheck, found: Tensor, expected: Tensor, error_bound: Tensor) -> None:
    distance = (found.double() - expected.double()).abs() / error_bound
    check.worst = max(check.worst, float(distance.max()) if distance.numel() else 0.0)
    check.violations += int((distance > 1).sum())


def compare_signs(check: LayerCheck, step: Step, signs: Tensor, expected: Tensor, error_bound: Tensor) -> None:
    reader = step.consumers[0]
    flipped = unpack_bits(signs ^ signs_of(reader, expected), len(step.scale), getattr(reader, 'groups', 1))
    threshold = sign_threshold(reader)
    threshold = torch.zeros_like(step.scale) if threshold is None else threshold
    if isinstance(reader, PackedConv2d):
        flipped, threshold = flipped.permute(0, 3, 1, 2), threshold.view(-1, 1, 1)
    distance = ((expected.double() - threshold.double()).abs() / error_bound)[flipped]
    check.positions += flipped.numel()
    check.different += distance.numel()
    check.violations += int((distance > 1).sum())
    check.worst = max(check.worst, float(distance.max()) if distance.numel() else 0.0)
