"""Single 3x3 convolutions from packed input, on every instruction set, against torch's fastest."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels.cpu import available_isas, ceilings, set_isa
from bnn_kernels.cpu.engine import EMULATED
from bnn_plugins.analysis.throughput import HostClock, measure

SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7), (64, 160), (128, 80), (256, 40), (512, 20))  # channels, image
CLASSIFIER = SHAPES[:4]
LAYER = ([1, 1], [1, 1], [1, 1], 1)  # padding, stride, dilation, groups as oneDNN takes them


@dataclass
class ConvolutionRow:
    """One convolution.

    Attributes:
        shape: ``'64@56'``, channels at image size. variant: ``'binary'`` or a float one. isa: of the engine, ``''`` for torch.
        float_isa: the widest instructions that torch was allowed to use.
        gmacs: GMAC/s from the median. of_ceiling: share of what the arithmetic alone could do, binary only.
        x_...: ratio of medians of the same run; the prepacked ones are what ``torch.compile`` with freezing runs.
    """

    shape: str
    variant: str
    isa: str
    float_isa: str
    threads: int
    clock: str
    rounds: int
    median_ms: float
    min_ms: float
    q1_ms: float
    q3_ms: float
    gmacs: float
    of_ceiling: float | str
    x_float32: float | str
    x_float32_prepacked: float | str
    x_bfloat16_prepacked: float | str


def instruction_sets() -> list[str]:
    """What the engine can use here, the widest first, without the emulated one."""
    return [isa for isa in reversed(available_isas()) if isa != EMULATED]


def float_calls(x: Tensor, w: Tensor) -> dict[str, Callable]:
    """torch's convolution in channels-last memory: eager, and with weights that oneDNN arranged before."""
    calls: dict[str, Callable] = {'float32': partial(F.conv2d, x, w, None, 1, 1)}
    for name, dtype in (('float32-prepacked', torch.float32), ('bfloat16-prepacked', torch.bfloat16)):
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            continue
        weight = w.to(dtype).contiguous(memory_format=torch.channels_last)
        packed = torch._C._nn.mkldnn_reorder_conv2d_weight(weight.to_mkldnn(), *LAYER, list(x.shape))
        calls[name] = partial(torch.ops.mkldnn._convolution_pointwise, x.to(dtype), packed, None, *LAYER, 'none', [], '')
    return calls


def measure_shape(channels: int, size: int, isas: list[str], float_isa: str, rounds: int,
                  budget: float) -> list[ConvolutionRow]:
    """One shape, every variant in turns, one thread, batch 1.

    Raises:
        AssertionError: when a path does not give the exact result.
    """
    torch.manual_seed(0)
    x = torch.randn(1, channels, size, size).contiguous(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    words, bits = bnn_kernels.pack_activations(x), bnn_kernels.pack_weight(w)
    expected = F.conv2d(torch.where(x >= 0, 1.0, -1.0), torch.where(w >= 0, 1.0, -1.0), None, 1, 1)

    def binary(isa: str) -> Tensor:
        with set_isa(isa):
            return bnn_kernels.binary_conv2d(words, bits, channels, 1, 1)

    calls = {isa: partial(binary, isa) for isa in isas}
    for isa, call in calls.items():
        assert torch.equal(call().float(), expected), f'{isa} is not exact at {channels}@{size}'
    calls |= float_calls(x, w)
    clock = HostClock(1)
    with torch.inference_mode():
        timings = measure(calls, clock, rounds, budget=budget)
    rows = []
    for name, timing in timings.items():
        first, third = timing.quartiles
        speed = channels * channels * 9 * size * size / timing.median / 1e9
        roof = ceilings(name)['binary'] if name in isas else 0
        ratios = [timings[base].median / timing.median if base in timings else ''
                  for base in ('float32', 'float32-prepacked', 'bfloat16-prepacked')]
        rows.append(ConvolutionRow(
            f'{channels}@{size}', 'binary' if name in isas else name, name if name in isas else '', float_isa, 1, clock.name,
            len(timing.samples), timing.median * 1e3, timing.minimum * 1e3, first * 1e3, third * 1e3, speed,
            speed / roof if roof else '', *ratios))
    return rows
