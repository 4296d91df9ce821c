"""The throughput profiler: sweeps over batches, sizes and threads; every combination is one interleaved run."""

import csv
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..deploy import verify
from ..progress import shown
from .machine import machine_facts
from .throughput import Timing, make_clock, measure, tensors_of, torch_threads
from .throughput_layers import Breakdown, break_down, measure_ceilings
from .throughput_variants import BASELINES, FORMS, ON_CPU, Models, Part, Variant, on_backend, peak_bytes

CPU = torch.device('cpu')


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        batches, sizes, threads: swept, every combination. A size is (height, width), ``None`` the natural one of the model.
        forms: keys of :data:`FORMS`.
        backends: of the packed forms; ``None`` chooses automatically.
        rounds, budget: see :func:`measure`; seconds per combination and part.
        layers: forms that are broken down by layer.
    """

    batches: Sequence[int] = (1,)
    sizes: Sequence[tuple[int, int] | None] = (None,)
    threads: Sequence[int] = (1,)
    forms: Sequence[str] = ON_CPU
    backends: Sequence[str | None] = (None,)
    rounds: int = 15
    budget: float = 20.0
    layers: Sequence[str] = ('fused', 'fused-int8', 'packed', 'float32')
    device: torch.device = CPU

    def combinations(self) -> list[tuple[int, tuple[int, int] | None, int]]:
        return [(batch, size, threads) for threads in self.threads for size in self.sizes for batch in self.batches]


@dataclass
class Check:
    """Whether the packed models compute what the latent one does, on the very inputs that are timed.

    Attributes:
        red: those of :class:`Models` that do not.
        text: what was compared.
    """

    part: str
    batch: int
    height: int
    width: int
    red: frozenset[str]
    text: str

    @property
    def ok(self) -> bool:
        return not self.red


@dataclass
class Row:
    """One variant of one part, as a line of the results file.

    Attributes:
        backend: what ran binary operators, ``''`` for float models.
        clock: what the times are of.
        rounds: samples.
        median_ms, min_ms, q1_ms, q3_ms: per call.
        images_per_s: from the median.
        x_...: how many times faster than this baseline, a ratio of medians of the same run; ``''`` where the baseline was not
            measured, and for packed models that did not pass the check.
        model_bytes: parameters and buffers.
        peak_bytes: of tensors during one call, beside model and input.
        check: ``'ok'``, ``'red'`` or ``''`` (float models, or not checked).
    """

    config: str
    part: str
    variant: str
    batch: int
    height: int
    width: int
    threads: int
    device: str
    backend: str
    clock: str
    rounds: int
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    images_per_s: float
    x_float32: float | str = ''
    x_float32_compiled: float | str = ''
    x_bfloat16: float | str = ''
    x_bfloat16_compiled: float | str = ''
    x_int8: float | str = ''
    model_bytes: int = 0
    peak_bytes: int = 0
    check: str = ''


@dataclass
class Throughput:
    """The result of :func:`profile`.

    Attributes:
        facts: what was measured on what, label -> text.
        checks: all of them, first thing.
        breakdowns: per row index.
        ceilings: GMAC/s by threads and group.
        skipped: ``(what, why)`` of variants that could not be built or run.
    """

    config: str
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    breakdowns: dict[int, Breakdown] = field(default_factory=dict)
    ceilings: dict[int, dict[str, float]] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=machine_facts)

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def to_csv(self, path: str | Path) -> Path:
        """One line per row, with the machine."""
        return write_csv(path, [*(f.name for f in fields(Row)), *self.machine],
                         ({**rounded(asdict(row)), **self.machine} for row in self.rows))

    def layers_to_csv(self, path: str | Path) -> Path:
        """One line per layer and group of every breakdown, and one for the time between operators."""
        keys = ('config', 'part', 'variant', 'batch', 'height', 'width', 'threads')
        columns = ('layer', 'kind', 'group', 'operators', 'backend', 'output', 'macs', 'ms', 'gmacs', 'ceiling')

        def lines():
            for index, breakdown in self.breakdowns.items():
                case = {key: getattr(self.rows[index], key) for key in keys}
                for layer in breakdown.rows:
                    yield {**case, **rounded({column: getattr(layer, column) for column in columns})}
                yield {**case, 'layer': '(between operators)', 'group': 'between', 'ms': round(breakdown.between_ms, 4)}
        return write_csv(path, [*keys, *columns], lines())


def rounded(values: dict) -> dict:
    """Four decimals, which is a tenth of a microsecond."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in values.items()}


def write_csv(path: str | Path, columns: Sequence[str], lines: Iterable[dict]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(lines)
    return path


def profile(config: str, models: Models, parts: Callable[[int, tuple[int, int] | None], list[Part]], plan: Plan,
            facts: dict[str, str] | None = None) -> Throughput:
    """Check, then measure every part of ``parts(batch, size)`` in every combination of ``plan``.

    Args:
        config: the name in the results.
        facts: for the page.
    """
    result = Throughput(config, facts=facts or {})
    for name in plan.backends:
        with on_backend(name):  # unknown or missing: its sentence, before anything is measured
            pass
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=not shown(Console())) as bar:
        task = bar.add_task('', total=None)
        for batch, size, threads in plan.combinations():
            with torch_threads(threads):
                if threads not in result.ceilings:
                    result.ceilings[threads] = measure_ceilings(plan.device, threads)
                torch._dynamo.reset()  # it counts the compilations of one forward function, and gives up after eight
                built: dict[tuple, Variant] = {}
                checks: dict[Callable, Check | None] = {}
                for part in parts(batch, size):
                    height, width = part.inputs[0].shape[-2:]
                    where = f'{part.name}, batch {batch}, {height}x{width}, {threads} thread{"s" * (threads > 1)}'
                    bar.update(task, description=where, total=None)
                    if part.module not in checks:
                        checks[part.module] = check_part(models, part, {FORMS[form].model for form in plan.forms})
                    check = checks[part.module]
                    if check is not None:
                        check = replace(check, part=part.name)
                        result.checks.append(check)
                        bar.console.print(f'check: {"ok" if check.ok else "RED"}: {where}: {check.text}', highlight=False)
                    run_part(result, models, part, plan, threads, check, built,
                             lambda done: bar.update(task, total=plan.rounds, completed=done))
    return result


def run_part(result: Throughput, models: Models, part: Part, plan: Plan, threads: int, check: Check | None,
             built: dict[tuple, Variant], advance: Callable[[int], None]) -> None:
    """Measure one part in one combination, and add its rows."""
    clock = make_clock(plan.device, threads)
    variants = make_variants(result, models, part, plan, built)
    done = iter(range(1, plan.rounds + 1))
    with torch.inference_mode():
        timings = measure({variant.name: variant for variant in variants}, clock, plan.rounds, budget=plan.budget,
                          advance=lambda: advance(next(done)))
    for variant in variants:
        with torch.inference_mode():
            peak = peak_bytes(variant, plan.device)
        row = make_row(result.config, variant, timings, threads, clock.name, plan.device, peak, check)
        plain = not variant.form.compiled and not variant.form.graph and not variant.form.engine
        watched = variant.form_name in plan.layers
        if plain and (variant.is_packed or watched):
            with on_backend(variant.backend):
                ceilings = measure_ceilings(plan.device, threads) if variant.backend else result.ceilings[threads]
            breakdown = break_down(variant, variant.module, clock, 7 if watched else 1, ceilings)
            row.backend = ' + '.join(breakdown.backends)
            if watched:
                result.breakdowns[len(result.rows)] = breakdown
        elif variant.is_packed:  # a compiled form runs the same operators
            row.backend = next((r.backend for r in reversed(result.rows) if r.part == row.part and r.backend
                                and r.variant == variant.name.replace('-compiled', '').replace('-graph', '')), '')
        result.rows.append(row)


def make_variants(result: Throughput, models: Models, part: Part, plan: Plan, built: dict[tuple, Variant]) -> list[Variant]:
    """Those of the plan that the models have; what cannot be built is noted in ``result.skipped``, with the reason.

    Args:
        built: by form, backend and module, from parts before: a part around the same module need not compile it again.
    """
    variants = []
    for form in plan.forms:
        if getattr(models, FORMS[form].model) is None:
            continue
        for backend in plan.backends if FORMS[form].model != 'twin' else (None,):
            key = (form, backend, part.module)
            try:
                if key not in built:
                    built[key] = Variant(form, part, models, backend)
                variant = built[key].around(part)
                # Compiled again, for other inputs, it would not have its weights frozen: slower, without a word.
                with torch.inference_mode(), torch._dynamo.config.patch(error_on_recompile=True):
                    variant()
                variants.append(variant)
            except Exception as error:  # of a compiler, or of an operator that lacks a dtype: the others are still measured
                why = (str(error).strip().splitlines() or [''])[0]
                result.skipped.append((f'{part.name}: {form}{f" [{backend}]" if backend else ""}',
                                       f'{type(error).__name__}: {why}'))
    return variants


def make_row(config: str, variant: Variant, timings: dict[str, Timing], threads: int, clock: str, device: torch.device,
             peak: int, check: Check | None) -> Row:
    """The line of one variant. No speed-up stands beside a red check."""
    batch, *_, height, width = variant.part.inputs[0].shape
    timing = timings[variant.name]
    first, third = timing.quartiles
    row = Row(config, variant.part.name, variant.name, batch, height, width, threads, device.type, '', clock,
              len(timing.samples), timing.median * 1e3, timing.minimum * 1e3, first * 1e3, third * 1e3, batch / timing.median,
              model_bytes=variant.model_bytes, peak_bytes=peak)
    if variant.is_packed and check is not None:
        row.check = 'red' if variant.form.model in check.red else 'ok'
    if row.check != 'red':
        for baseline, names in BASELINES.items():
            known = [timings[name].median for name in names if name in timings]
            if known:
                setattr(row, f'x_{baseline.replace("-", "_")}', min(known) / timing.median)
    return row


@torch.no_grad()
def check_part(models: Models, part: Part, wanted: Collection[str]) -> Check | None:
    """Packed must agree with latent bit by bit, fused as :func:`bnn_plugins.verify` says; ``None`` without a latent model.

    Args:
        wanted: which of the models are measured.
    """
    if models.latent is None:
        return None
    inputs = tuple(x.contiguous(memory_format=torch.channels_last) if isinstance(x, Tensor) and x.dim() == 4 else x
                   for x in part.inputs)
    latent, red, texts = part.module(models.latent), set(), []
    if models.packed is not None and 'packed' in wanted:
        pairs = zip(tensors_of(latent(*inputs)), tensors_of(part.module(models.packed)(*inputs)), strict=True)
        different = sum(int((a != b).sum()) for a, b in pairs)
        texts.append('packed equals latent, bit by bit' if not different else f'packed differs in {different} values')
        red |= {'packed'} if different else set()
    for name in ('fused', 'fused_bfloat16', 'fused_int8'):
        if getattr(models, name) is not None and name in wanted:
            report = verify(latent, part.module(getattr(models, name)), *inputs)
            texts.append(f'{name}: {report.summary()}')
            red |= set() if report.ok else {name}
    batch, *_, height, width = part.inputs[0].shape
    return Check(part.name, batch, height, width, frozenset(red), '; '.join(texts))
