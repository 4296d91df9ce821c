"""What a training step costs: time of its phases, memory, and which kinds of layers take the time; side by side with others.

Steps are taken in turns, A B C A B C ..., so that a slow second of the machine hits them all alike; what is compared are
ratios within a round. A *phase* is ``data`` (the next batch, augmented), ``forward`` (with the loss), ``backward`` or
``optimizer`` (the step, gradients freed, schedules and latent weights of binary layers). A step is all but its data.
"""

import ctypes
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..binarize import after_step_, set_progress
from ..layers import BinaryLayer, RPReLU
from ..layers.training import set_training_path, training_refusals
from .throughput import Clock, make_clock, tensors_of, torch_threads
from .throughput_variants import peak_bytes, silent_stderr

PHASES = ('data', 'forward', 'backward', 'optimizer')
KINDS = ('binary', 'float', 'norm', 'activation', 'other')


@dataclass
class Training:
    """A model and what its steps are made of.

    Attributes:
        model: on its device, in training mode.
        optimizer: has ``step()`` and ``zero_grad()``: of torch, or mmengine's wrapper.
        batch: the next batch.
        loss: of ``model`` on a batch, a number.
        network: the part of the model that is compiled where that is asked for.
    """

    model: nn.Module
    optimizer: object
    batch: Callable[[], object]
    loss: Callable[[nn.Module, object], Tensor]
    network: nn.Module


@dataclass
class TrainingVariant:
    """A training, and how it runs.

    Attributes:
        name: in the results; ``'float32'``, ``'bfloat16'`` and ``'float32-compiled'`` are what the others are compared with.
        autocast: dtype, ``None`` for none. compiled: with ``torch.compile``.
        gradients: of binary layers, see :class:`.set_training_path`; ``None``: as it is set.
    """

    name: str
    training: Training
    autocast: torch.dtype | None = None
    compiled: bool = False
    gradients: str | None = None

    def __post_init__(self):
        if self.compiled:
            self.training.network.compile()

    @property
    def device(self) -> torch.device:
        return next(self.training.model.parameters()).device

    def precision(self) -> AbstractContextManager:
        if self.gradients is not None:
            return set_training_path(gradients=self.gradients)
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    def step(self, mark: Callable[[], object] = lambda: None, phase: Callable = lambda name: nullcontext()) -> list:
        """One step; returns what ``mark`` gave before the first phase and after each; phases run under ``phase(name)``."""
        training, marks = self.training, [mark()]
        with phase('data'):
            batch = training.batch()
        marks.append(mark())
        with phase('forward'), self.precision():
            loss = training.loss(training.model, batch)
        marks.append(mark())
        with phase('backward'):
            loss.backward()
        marks.append(mark())
        with phase('optimizer'):
            training.optimizer.step()
            after_step_(training.model)
            set_progress(training.model, 0.5)
            training.optimizer.zero_grad()
        marks.append(mark())
        return marks


@dataclass
class TrainingRow:
    """One variant, as a line of the results file.

    Attributes:
        path: how the binary layers train, see :func:`training_path`; '' for float networks.
        clock: what the times are of. rounds: steps that were timed.
        step_ms, q1_ms, q3_ms, min_ms: of a step without its data: median, quartiles, minimum. images_per_s: with the data.
        of_...: the step's time as a share of that baseline's, the median of the ratios in each round; below 1 is faster.
            '' where the baseline was not measured. of_float32_q1, of_float32_q3: the quartiles of the first.
        data_ms, ...: medians of the phases.
        kinds: ``binary_forward_ms`` and so on for every kind of layer, forward and backward: see :func:`share_of_kinds`.
        saved_bytes: what the forward pass keeps for the backward pass, parameters and buffers aside.
        peak_bytes: the most that a step holds of tensors at a time, beside what is there before it.
        resident_bytes: the most by which the process grows in a step, with what is not a tensor (scratch memory of operators);
            '' where the system cannot tell.
    """

    config: str
    variant: str
    batch: int
    height: int
    width: int
    threads: int
    device: str
    path: str
    clock: str
    rounds: int
    step_ms: float
    q1_ms: float
    q3_ms: float
    min_ms: float
    images_per_s: float
    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    saved_bytes: int
    peak_bytes: int
    resident_bytes: int | str
    of_float32: float | str = ''
    of_float32_q1: float | str = ''
    of_float32_q3: float | str = ''
    of_bfloat16: float | str = ''
    of_float32_compiled: float | str = ''
    kinds: dict[str, float] = field(default_factory=dict)

    def line(self) -> dict:
        """For a results file, times rounded to a tenth of a microsecond."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != 'kinds'} | self.kinds
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


BASELINES = ('float32', 'bfloat16', 'float32-compiled')


@dataclass
class StepTimes:
    """Seconds of each phase, one value per round."""

    phases: dict[str, list[float]] = field(default_factory=lambda: {phase: [] for phase in PHASES})

    @property
    def steps(self) -> list[float]:
        """Without the data."""
        return [sum(parts) for parts in zip(*(self.phases[phase] for phase in PHASES[1:]), strict=True)]

    def median(self, phase: str) -> float:
        return statistics.median(self.phases[phase])


def profile_training(config: str, variants: Sequence[TrainingVariant], threads: int = 1, rounds: int = 15,
                     budget: float = 60.0, warmup: int = 2) -> list[TrainingRow]:
    """Measure ``variants`` side by side, one row each.

    Args:
        config: the name in the results.
        rounds: steps of each that are timed.
        budget: seconds for them; where they do not fit there are fewer, but at least three (or ``rounds``).
        warmup: steps of each before that.
    """
    with torch_threads(threads):
        clock = make_clock(variants[0].device, threads)
        times = measure_steps(variants, clock, rounds, budget, warmup)
        return [make_row(config, variant, variants, times, clock, threads) for variant in variants]


def measure_steps(variants: Sequence[TrainingVariant], clock: Clock, rounds: int, budget: float,
                  warmup: int) -> list[StepTimes]:
    expected = 0.0
    for variant in variants:
        for _ in range(max(warmup, 1)):
            marks = variant.step(clock.mark)
        expected += clock.between(marks[0], marks[-1])
    rounds = int(max(min(rounds, 3), min(rounds, budget / max(expected, 1e-9))))
    times = [StepTimes() for _ in variants]
    for _ in range(rounds):
        for variant, one in zip(variants, times, strict=True):
            marks = variant.step(clock.mark)
            for phase, start, end in zip(PHASES, marks, marks[1:], strict=False):
                one.phases[phase].append(clock.between(start, end))
    return times


def make_row(config: str, variant: TrainingVariant, variants: Sequence[TrainingVariant], times: list[StepTimes], clock: Clock,
             threads: int) -> TrainingRow:
    one = times[variants.index(variant)]
    first, middle, third = quartiles(one.steps)
    shape = next(tensor.shape for tensor in tensors_of(variant.training.batch()) if tensor.ndim == 4)
    medians = {phase: 1e3 * one.median(phase) for phase in PHASES}
    row = TrainingRow(
        config, variant.name, shape[0], *shape[-2:], threads, variant.device.type,
        training_path(variant.training.model), clock.name, len(one.steps), 1e3 * middle, 1e3 * first, 1e3 * third,
        1e3 * min(one.steps), shape[0] / (middle + one.median('data')), **{f'{phase}_ms': medians[phase] for phase in PHASES},
        saved_bytes=saved_bytes(variant), peak_bytes=peak_bytes(variant.step, variant.device),
        resident_bytes=resident_peak(variant.step))
    shares = share_of_kinds(variant)
    row.kinds = {f'{kind}_{phase}_ms': share * medians[phase] for (kind, phase), share in shares.items()}
    for baseline, other in zip(variants, times, strict=True):
        if baseline.name in BASELINES:
            ratios = quartiles([a / b for a, b in zip(one.steps, other.steps, strict=True)])
            setattr(row, f'of_{baseline.name.replace("-", "_")}', ratios[1])
            if baseline.name == 'float32':
                row.of_float32_q1, _, row.of_float32_q3 = ratios
    return row


def training_path(model: nn.Module) -> str:
    """What the binary layers of ``model`` took in their last step: ``'operators'`` of training, ``'torch'``, or some each; ''
    where there are none."""
    refusals = training_refusals(model)
    operators = refusals.count('')
    if not refusals or 0 < operators < len(refusals):
        return f'{operators} of {len(refusals)} operators' if refusals else ''
    return 'operators' if operators else 'torch'


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first, the median, the third; all are the value where there is only one."""
    return tuple(statistics.quantiles(values, n=4, method='inclusive')) if len(values) > 1 else (values[0],) * 3


def saved_bytes(variant: TrainingVariant) -> int:
    """What the forward pass keeps for the backward pass: the storages of all saved tensors, each once, without those of
    parameters and buffers. With gradient checkpointing these are what is kept between the two passes.
    """
    model = variant.training.model
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves: an address may be used again

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    batch = variant.training.batch()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), variant.precision():
        variant.training.loss(model, batch)
    return sum(storage.nbytes() for storage in kept.values())


def resident_peak(call: Callable[[], object]) -> int | str:
    """Bytes by which ``call`` makes this process grow, at most; '' without Linux's count of it.

    Free memory goes back to the system first: reused, it would not show. On a GPU this is not what the step needs there.
    """
    clear, status = Path('/proc/self/clear_refs'), Path('/proc/self/status')
    if not clear.exists():
        return ''

    def kilobytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):
        libc.malloc_trim(0)
    clear.write_text('5')  # the largest size so far is the present one
    before = kilobytes('VmRSS')
    call()
    return 1024 * max(kilobytes('VmHWM') - before, 0)


def kind_of(module: nn.Module) -> str | None:
    """One of :data:`KINDS`; ``None`` for what belongs to the module around it."""
    if isinstance(module, BinaryLayer):
        return 'binary'
    if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
        return 'float'
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm):
        return 'norm'
    if isinstance(module, RPReLU) or (type(module).__module__ == 'torch.nn.modules.activation'
                                      and not isinstance(module, nn.MultiheadAttention)):
        return 'activation'
    return None


@contextmanager
def marked_kinds() -> Iterator[None]:
    """Every call of a module of a kind is a range of the profiler. Hooks are global: those of a module would be seen by it."""
    ranges = []

    def before(module: nn.Module, inputs: object) -> None:
        if (kind := kind_of(module)) is not None:
            ranges.append(torch.profiler.record_function(f'kind:{kind}'))
            ranges[-1].__enter__()

    def after(module: nn.Module, inputs: object, output: object) -> None:
        if kind_of(module) is not None:
            ranges.pop().__exit__(None, None, None)

    handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def share_of_kinds(variant: TrainingVariant) -> dict[tuple[str, str], float]:
    """Shares of the time of the forward and the backward pass, ``{('binary', 'forward'): 0.4, ...}``; each pass adds up to 1.

    From one step under torch's profiler. A backward operation belongs to the layer of the forward operation with its sequence
    number; what happens inside of a binary layer belongs to it, whatever it is.
    """
    on_gpu = variant.device.type == 'cuda'
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if on_gpu else [])]
    with silent_stderr(), marked_kinds(), torch.profiler.profile(activities=activities) as profile:
        variant.step(phase=lambda name: torch.profiler.record_function(f'phase:{name}'))
    times = dict.fromkeys(((kind, phase) for kind in KINDS for phase in ('forward', 'backward')), 0.0)
    kinds, backward = {}, []
    for event in sorted(profile.events(), key=lambda event: event.time_range.start):
        time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        phase, kind, node = located(event)
        if node is not None:
            backward.append((node.sequence_nr, time))
        elif phase == 'forward':
            times[kind, phase] += time
            if event.sequence_nr >= 0:
                kinds[event.sequence_nr] = kind  # operations without a node share the number with the next that has one
        elif phase == 'backward':
            times['other', phase] += time
    for number, time in backward:
        times[kinds.get(number, 'other'), 'backward'] += time
    totals = {phase: sum(time for (_, at), time in times.items() if at == phase) or 1.0 for phase in ('forward', 'backward')}
    return {(kind, phase): time / totals[phase] for (kind, phase), time in times.items()}


def located(event) -> tuple[str, str, object | None]:
    """Phase and kind of an event of the profiler, and the node of the backward graph that it belongs to."""
    phase, kinds, node = '', [], None
    while event is not None:
        head, _, tail = event.name.partition(':')
        if event.name.startswith('autograd::engine::evaluate_function'):
            node = event
        elif head == 'phase':
            phase = tail
        elif head == 'kind':
            kinds.append(tail)
        event = event.cpu_parent
    return phase, 'binary' if 'binary' in kinds else (kinds or ['other'])[0], node
