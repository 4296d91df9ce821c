"""A binary LSTM layer and binary attention from real input, packing included, against torch's float ones."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels.cpu.engine import EMULATED
from bnn_plugins.analysis.throughput import HostClock, measure
from bnn_plugins.analysis.throughput_variants import on_backend

UNITS, STEPS, BATCHES = 512, 100, (1, 8)
GATES = {'soft': ('soft', 'tanh'), 'binary': ('binary', 'sign')}  # gates and candidate
HEADS, HEAD_DIM, TOKENS = 4, 64, (256, 1024, 4096)
CHECKED_ROWS = 64  # queries that are compared with the reference, which has all scores in memory


@dataclass
class SequenceRow:
    """One layer.

    Attributes:
        layer: ``'lstm'`` or ``'attention'``. size: units or tokens. batch: sequences, or heads.
        variant: gates of the LSTM, rule of the attention, or a float dtype. isa: of the engine, ``''`` for torch.
        check: ``'ok'`` where the results were equal to the reference's, bit for bit.
        x_...: ratio of medians of the same run.
    """

    layer: str
    size: int
    batch: int
    steps: int
    variant: str
    isa: str
    threads: int
    clock: str
    rounds: int
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    check: str
    x_float32: float | str
    x_bfloat16: float | str


def instruction_sets() -> list[str]:
    """The widest that the engine has here, and AVX2."""
    isas = [isa for isa in reversed(bk.cpu.available_isas()) if isa not in (EMULATED, 'portable')]
    return [isa for isa in isas if isa in (isas[0], 'avx2')]


def lstm_calls(batch: int) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable]]:
    """The binary layer with each kind of gates, and the float ones: ``[T, N, D]`` to hidden states ``[T, N, H]``."""
    x = torch.randn(STEPS, batch, UNITS)
    wx, wh = bk.pack_features(torch.randn(4 * UNITS, UNITS)), bk.pack_features(torch.randn(1, 4 * UNITS, UNITS))
    scale, bias = torch.full((1, 4 * UNITS), (2 * UNITS) ** -0.5), torch.randn(1, 4 * UNITS) * 0.1
    threshold = torch.zeros(1, UNITS)

    def binary(gates: str, candidate: str) -> Tensor:
        sums = bk.binary_linear(bk.pack_features(x), wx, UNITS).unsqueeze(2)
        return bk.binary_lstm(sums, wh, bk.Recurrence(scale, scale, bias, threshold, gates=gates, candidate=candidate))[0]

    floats = {name: (nn.LSTM(UNITS, UNITS).to(dtype), x.to(dtype)) for name, dtype in
              (('float32', torch.float32), ('bfloat16', torch.bfloat16))}
    return ({name: partial(binary, *modes) for name, modes in GATES.items()},
            {name: partial(layer, given) for name, (layer, given) in floats.items()})


def attention_calls(tokens: int, queries: int | None = None) -> tuple[dict[str, Callable[[], Tensor]], dict[str, Callable]]:
    """Binary attention by each rule, and the float ones: ``[1, N, C]`` each to ``[1, N, C]``; ``queries``: the first only."""
    q, k, v = torch.randn(3, 1, tokens, HEADS * HEAD_DIM).unbind()
    one = torch.ones(1, HEADS, dtype=torch.float64)
    table = bk.attention_table(HEAD_DIM ** -0.5, HEAD_DIM)
    rules = {'bool': (one, None), 'max_relative': (one * 11, None), 'elastic': (one / tokens, table)}

    def binary(rule: str, limit: Tensor, exponentials: Tensor | None) -> Tensor:
        return bk.binary_attention(bk.pack_heads(q[:, :queries], HEADS), bk.pack_heads(k, HEADS), bk.pack_values(v, HEADS),
                                   HEAD_DIM, limit, rule=rule, table=exponentials)

    floats = {}
    for name, dtype in ('float32', torch.float32), ('bfloat16', torch.bfloat16):
        split = [x.to(dtype).unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v)]
        floats[name] = partial(F.scaled_dot_product_attention, *split)
    return {rule: partial(binary, rule, *given) for rule, given in rules.items()}, floats


def measure_sequence(layer: str, size: int, rounds: int, budget: float) -> list[SequenceRow]:
    """An ``'lstm'`` of ``size`` sequences or an ``'attention'`` over ``size`` tokens, every variant in turns, one thread.

    Raises:
        AssertionError: when an instruction set does not give the reference's result.
    """
    make = lstm_calls if layer == 'lstm' else attention_calls
    torch.manual_seed(0)
    binary, floats = make(size)
    torch.manual_seed(0)
    checked = binary if layer == 'lstm' else attention_calls(size, CHECKED_ROWS)[0]

    def run(call: Callable, isa: str) -> Tensor:
        with on_backend(f'cpu:{isa}'):
            return call()

    calls = {}
    with torch.inference_mode():
        for name, call in binary.items():
            with bk.set_backend('reference'):
                expected = checked[name]()
            for isa in instruction_sets():
                assert torch.equal(run(checked[name], isa), expected), f'{layer} {name} is not exact with {isa}'
                assert torch.equal(run(call, isa)[:, :len(expected[0])], expected), f'{layer} {name} is not exact with {isa}'
                calls[name, isa] = partial(run, call, isa)
        clock = HostClock(1)
        timings = measure(calls | {(name, ''): call for name, call in floats.items()}, clock, rounds, budget=budget)
    size, batch, steps = (UNITS, size, STEPS) if layer == 'lstm' else (size, HEADS, 1)
    rows = []
    for (variant, isa), timing in timings.items():
        first, third = timing.quartiles
        rows.append(SequenceRow(
            layer, size, batch, steps, variant, isa, 1, clock.name, len(timing.samples), timing.median * 1e3,
            timing.minimum * 1e3, first * 1e3, third * 1e3, 'ok' if isa else '',
            *(timings[base, ''].median / timing.median for base in ('float32', 'bfloat16'))))
    return rows
