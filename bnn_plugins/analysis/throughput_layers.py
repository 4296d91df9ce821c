"""Where the time of one call goes: every operator timed by itself, by the layer that called it.

Operators are seen where torch dispatches them, so what Python does between them is not in their times; it is reported beside
them. Those of the CPU engine time themselves, without what it takes to get there. Modules are known from hooks for all
modules: hooks on the modules themselves would switch block fusion off.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import bnn_kernels
import bnn_kernels.cpu
from bnn_kernels.geometry import Int8Conv2dGeometry, Stem2dGeometry

from ..deploy import fused_steps
from .throughput import Clock, HostClock, make_clock, measure, sample, tensors_of

OUTSIDE = '(outside of layers)'
KERNELS = 'bnn_kernels'
REAL = ('downsample2d', 'stem2d', 'int8_conv2d')


@dataclass
class LayerTime:
    """The operators of one kind that one layer ran in one call.

    Attributes:
        layer: its dotted name.
        kind: the name of its class.
        group: ``'binary'`` (operators of ``bnn_kernels`` on bits), ``'float'`` (real multiply-accumulates) or ``'rest'``
            (norms, activations, copies, ...).
        operators: their names.
        backend: what ran binary ones, with its instruction set; ``'torch'`` for the others.
        output: shape of the last output.
        macs: multiply-accumulates.
        ms: median over the rounds.
        ceiling: GMAC/s of this machine for this group and dtype, 0 where it was not measured.
    """

    layer: str
    kind: str
    group: str
    operators: str
    backend: str
    output: str
    macs: int
    ms: float
    ceiling: float = 0.0

    @property
    def gmacs(self) -> float:
        """GMAC/s."""
        return self.macs / self.ms / 1e6 if self.ms else 0.0

    @property
    def of_ceiling(self) -> float:
        """Share of the ceiling, in [0, 1]; 0 where there is none."""
        return self.gmacs / self.ceiling if self.ceiling else 0.0


@dataclass
class Breakdown:
    """One variant, layer by layer.

    Attributes:
        rows: in the order of the first operator of each.
        between_ms: time between operators: Python and dispatch, as they are without the measurement (the call's own median
            less all operators; not below 0).
    """

    rows: list[LayerTime]
    between_ms: float

    def share(self, group: str) -> float:
        """Share of the call's time, in [0, 1], of a group or of ``'between'``."""
        total = self.between_ms + sum(row.ms for row in self.rows)
        part = self.between_ms if group == 'between' else sum(row.ms for row in self.rows if row.group == group)
        return part / total if total else 0.0

    @property
    def backends(self) -> list[str]:
        """What ran binary operators."""
        return sorted({row.backend for row in self.rows if row.backend != 'torch'})


@dataclass
class Record:
    """All calls of one operator in one layer, in one round."""

    group: str
    backend: str
    seconds: float = 0.0
    macs: int = 0
    output: str = ''


class Operators(TorchDispatchMode):
    """Times every operator that is dispatched within, by the innermost module of ``names`` that is running."""

    def __init__(self, names: dict[nn.Module, str], clock: Clock):
        super().__init__()
        self.names, self.clock = names, clock
        self.running = [OUTSIDE]
        self.marks: list[tuple] = []
        self.records: dict[tuple[str, str], Record] = {}

    def __enter__(self):
        self.timed = ExitStack()
        self.engine_seconds = (self.timed.enter_context(bnn_kernels.cpu.timed_runs(self.clock.number))
                               if isinstance(self.clock, HostClock) else lambda: 0.0)
        self.handles = [register_module_forward_pre_hook(self.enter_module),
                        register_module_forward_hook(self.leave_module, always_call=True)]
        return super().__enter__()

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()
        super().__exit__(*error)
        self.timed.close()
        for record, start, end, inside in self.marks:  # afterwards: a GPU must not wait after every operator
            record.seconds += inside or self.clock.between(start, end)

    def enter_module(self, module: nn.Module, _):
        self.running.append(self.names.get(module, self.running[-1]))

    def leave_module(self, *_):
        self.running.pop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        start = self.clock.mark()
        result = function(*args, **kwargs)
        end = self.clock.mark()
        inside = self.engine_seconds() if function.namespace == KERNELS else 0.0
        name = function._schema.name
        record = self.records.get((self.running[-1], name))
        if record is None:
            record = self.records[self.running[-1], name] = Record(*group_of(function))
        record.macs += macs_of(function, args, kwargs, result)
        # What works in place returns nothing, or words that nobody wants: its first argument is its output.
        shapes = [tensor.shape for tensor in tensors_of((args[:1], result)) if tensor.numel()]
        record.output = 'x'.join(map(str, shapes[-1])) if shapes else ''
        self.marks.append((record, start, end, inside))
        return result


def group_of(function: torch._ops.OpOverload) -> tuple[str, str]:
    """Group and backend of an operator that has just run."""
    if function.namespace == KERNELS:
        op = function._schema.name.partition('::')[2]
        group = 'float' if op in REAL else 'rest' if op == 'quantize' else 'binary'
        return group, backend_text(bnn_kernels.last_backend(op.rstrip('_')))
    return ('float' if function._overloadpacket in flop_registry else 'rest'), 'torch'


def backend_text(backend: str | None) -> str:
    """``'cpu (avx512)'``: the engine with its instruction set; others by their name."""
    return f'cpu ({bnn_kernels.cpu.isa()})' if backend == 'cpu' else str(backend)


def macs_of(function: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object) -> int:
    """Multiply-accumulates of one operator; 0 for those without any."""
    if function.namespace != KERNELS:
        count = flop_registry.get(function._overloadpacket)
        return count(*args, **kwargs, out_val=result) // 2 if count else 0
    call = {argument.name: value for argument, value in zip(function._schema.arguments, args, strict=False)} | kwargs
    op = function._schema.name.partition('::')[2]
    if op.startswith('pack') or op == 'quantize':
        return 0
    if op == 'int8_conv2d':
        numbers = [tuple(call[name]) for name in ('stride', 'padding', 'dilation')]
        transposed = call['output_padding'] is not None
        geometry = Int8Conv2dGeometry.of(call['weight'].shape, *numbers, call['groups'])
        size = call['x'].shape[2:]  # transposed, each pixel of x meets every tap once
        size = size if transposed else geometry.size(size)
        return call['x'].shape[0] * math.prod(size) * call['weight'].numel()
    if op == 'downsample2d':
        return result.numel() * call['x'].shape[1]
    if op == 'stem2d':
        geometry = Stem2dGeometry.of(call['weight'].shape, call['stride'], call['padding'])
        sums, _ = geometry.sizes(call['x'].shape[2:])
        return call['x'].shape[0] * math.prod(sums) * call['weight'].numel()  # pooling comes after it
    outputs, *kernel, _ = call['w_words'].shape
    if op == 'binary_linear':
        return result.numel() * call['features']
    terms = math.prod(kernel) * call['channels'] // call['groups']
    if op == 'binary_conv_transpose2d':  # each input pixel meets every tap once
        return math.prod(call['x_words'].shape[:3]) * outputs * terms
    pixels = [t.numel() // t.shape[1] if t.is_floating_point() or op == 'binary_conv2d' else math.prod(t.shape[:3])
              for t in (*tensors_of(result), *tensors_of(call.get('stream'))) if t.dim() == 4]
    return pixels[0] * outputs * terms


def layer_names(model: nn.Module) -> dict[nn.Module, str]:
    """Modules and fused steps by name; what has no name of its own counts for its parent."""
    names = {module: name for name, module in model.named_modules() if name}
    return names | {step: name for name, step in fused_steps(model)}


def break_down(call: Callable[[], object], model: nn.Module, clock: Clock, rounds: int = 7,
               ceilings: dict[str, float] | None = None) -> Breakdown:
    """Run ``call`` and time its operators; in turns with calls that are not recorded, for the time between operators.

    Args:
        model: whose modules are named.
        ceilings: GMAC/s by group.
    """
    names = layer_names(model)
    alone: list[float] = []
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    call()
    for _ in range(rounds):
        with torch.inference_mode():
            alone.append(sample(call, clock, 1))
        # Not in inference mode: there, composite operators are not taken apart.
        with torch.no_grad(), Operators(names, clock) as operators:
            call()
        for key, record in operators.records.items():
            seconds[key].append(record.seconds)
    kinds = {name: type(module).__name__ for module, name in names.items()}
    ceilings = ceilings or {}
    rows: dict[tuple[str, str, str], LayerTime] = {}
    for (layer, operator), record in operators.records.items():
        group, backend = record.group, record.backend
        row = rows.setdefault((layer, group, backend), LayerTime(layer, kinds.get(layer, ''), group, '', backend, '', 0, 0.0,
                                                                 ceilings.get(group, 0.0)))
        short = operator.partition('::')[2]
        row.operators = f'{row.operators}, {short}' if row.operators else short
        row.output, row.macs = record.output or row.output, row.macs + record.macs
        row.ms += statistics.median(seconds[layer, operator]) * 1e3
    spent = sum(row.ms for row in rows.values())
    return Breakdown(list(rows.values()), max(statistics.median(alone) * 1e3 - spent, 0.0))


def measure_ceilings(device: torch.device, threads: int) -> dict[str, float]:
    """GMAC/s that this machine reaches at best, by group, with ``threads`` threads.

    Of the innermost steps of the engine on the instruction set in use; where it cannot say (not compiled, a GPU), of float32
    in a matrix product.
    """
    if device.type == 'cpu':
        try:
            ceilings = bnn_kernels.cpu.ceilings(bnn_kernels.cpu.isa())
            return {group: threads * value for group, value in ceilings.items() if value}
        except RuntimeError:
            pass
    a, b = torch.randn(2, 1024, 1024, device=device)
    timing = measure({'product': lambda: a @ b}, make_clock(device, threads), rounds=9)['product']
    return {'float': 1024 ** 3 / timing.minimum / 1e9}
