"""What a latency model makes of the convolutions of ResNet-18 on an H200: a model, no measurement; no GPU is needed.

``python -m benchmarks.gpu.latency`` walks through the machine code of each (`pipeline`), adds up the 16 of ResNet-18, and
compares them with cuDNN on float16, assumed to run at the given rate. What stands behind it:
"""

import argparse
from collections.abc import Iterator
from functools import cache
from math import ceil
from typing import NamedTuple

from bnn_kernels.triton import tensorcore
from bnn_kernels.triton.tensorcore_offline import compiled

from . import pipeline, profile
from .layers import Convolution, networks
from .pipeline import COLD, WARM

ASSUMPTIONS = """
  clock 1.83 GHz, 132 multiprocessors; memory 4.3 TB/s (of 4.8); weights at 64 bytes per clock and multiprocessor from L2;
  activations and shortcuts after 750 clocks (cold, from memory) or 290 (from L2), tables after 45 (L1), wgmma after 60;
  wgmma 32768 products of bits per clock and multiprocessor (8 times int8); others have measured 26500 or more;
  1 microsecond per launch for us, beside the first loads, which are counted; 1.5 for cuDNN, all together;
  cuDNN takes the longer of its operations at the given rate and of its bytes; shortcuts of a block are ours alone to move.
"""
CLOCK, PROCESSORS, BANDWIDTH, FILL = 1.83e9, 132, 4.3e12, 64
LAUNCH, CUDNN_LAUNCH = 1.0e-6, 1.5e-6
MACHINE = tensorcore.Machine((9, 0), PROCESSORS, True)


class Times(NamedTuple):
    """Seconds of one convolution."""

    ours: float
    memory: float  # the least that its bytes take
    cudnn: float
    clocks: float  # of a tile and multiprocessor


@cache
def body_of(layer: Convolution, mode: str) -> tuple[list[pipeline.Step], dict, int]:
    """The loop, the constants of the kernel, and the bytes of weights of a block."""
    launch, tensors = profile.launch_of('sm_90a wgmma', layer, mode)
    binary = compiled(launch, tensors, (9, 0))
    return pipeline.steps(profile.disassembled(binary.cubin).loop()), launch.numbers, binary.shared


def times(layer: Convolution, batch: int, mode: str, rate: float, activation: int = COLD) -> Times:
    body, numbers, weights = body_of(layer._replace(size=56), mode)
    block_m, block_n = numbers['BLOCK_M'], numbers['BLOCK_N']
    tiles, blocks = ceil(batch * layer.out_size**2 / block_m), layer.outputs // block_n
    words = layer.kernel**2 * layer.channels // 32
    resident = tensorcore.residents(MACHINE, mode, numbers['OP'], words, block_m, block_n)
    walkers = min(tiles, max(1, PROCESSORS * resident // blocks))
    warps, each = ceil(walkers * blocks / PROCESSORS), ceil(tiles / walkers)
    fill = weights * warps / FILL + COLD  # the words of the first tile come meanwhile
    clocks = pipeline.walked(body, warps, each, activation)
    memory = layer.bytes(batch, 1, 1, 1, 32 if mode == 'block' else 0) / BANDWIDTH
    return Times(LAUNCH + max((fill + clocks) / CLOCK, memory), memory,
                 CUDNN_LAUNCH + max(layer.operations(batch) / rate, layer.bytes(batch, 16, 16, 16) / BANDWIDTH),
                 clocks / each / warps)


def rows(image: int, batch: int, rate: float, activation: int = COLD) -> Iterator[tuple[Convolution, int, dict[str, Times]]]:
    """Distinct convolutions of ResNet-18, how often it has them, and 'sign' and 'block'."""
    layers = networks(image)['ResNet-18']
    for layer in dict.fromkeys(layers):
        yield layer, layers.count(layer), {mode: times(layer, batch, mode, rate, activation) for mode in ('sign', 'block')}


def main():
    parser = argparse.ArgumentParser(description=__doc__ + ASSUMPTIONS, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--image', type=int, default=224)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--rate', type=float, default=790e12, help='operations per second of cuDNN')
    parser.add_argument('--warm', action='store_true', help='activations come from L2')
    args = parser.parse_args()
    print(f'A model, no measurement.{ASSUMPTIONS}')
    totals = [0.0] * 6
    for layer, count, modes in rows(args.image, args.batch, args.rate, WARM if args.warm else COLD):
        values = [modes['sign'].cudnn, *[value for mode in modes.values() for value in (mode.ours, mode.memory)]]
        pair = (modes['sign'].ours + modes['block'].ours) / 2
        totals = [total + count * value for total, value in zip(totals, [*values, pair], strict=True)]
        print(f'{count} x {layer.channels}->{layer.outputs} /{layer.stride}: cuDNN {1e6 * values[0]:.1f} us', *[
            f'{mode} {1e6 * value.ours:.1f} us (memory {1e6 * value.memory:.1f}, {value.clocks:.0f} clocks a tile)'
            for mode, value in modes.items()], sep='; ')
    cudnn, sign, sign_memory, block, block_memory, pair = totals
    print(f'all: cuDNN {1e6 * cudnn:.0f} us')
    for name, value, memory in (('sign', sign, sign_memory), ('block, a shortcut at each', block, block_memory),
                                ('by turns, a shortcut for each pair', pair, (sign_memory + block_memory) / 2)):
        print(f'{name}: {1e6 * value:.0f} us, {cudnn / value:.2f}x (its bytes alone {1e6 * memory:.0f} us)')


if __name__ == '__main__':
    main()
