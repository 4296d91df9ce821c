"""What an eager call of a Triton operator costs on the host, without a GPU: up to the launch itself, which is left out.

``python -m benchmarks.gpu.host``. Times of a shared machine are worth little: what counts is the ratio to a bare launch of the
same kernel through Triton's ``JITFunction.run``, by turns with it.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

import bnn_kernels as bk
from bnn_kernels import dispatch
from bnn_kernels.geometry import Conv2dGeometry, Int8Conv2dGeometry
from bnn_kernels.triton.offline import Launch, compiling_for

from .exactness import BACKENDS

ROUNDS, CALLS = 9, 50


class Call(NamedTuple):
    """An eager call, and the same one as a fused model binds it: operator, what stays, what comes each time."""

    eager: Callable
    op: str
    fixed: dict
    inputs: dict


def calls() -> Iterator[Call]:
    """A layer of 256 channels at 14 x 14, a linear layer of 512 features, packing, a pooled shortcut of 128 outputs, a real
    layer in int8."""
    words, weight = torch.zeros(1, 14, 14, 8, dtype=torch.int32), bk.pack_weight(torch.ones(256, 256, 3, 3))
    conv, vectors = dict(w_words=weight, channels=256, padding=1), torch.ones(6, 256)
    stream = torch.zeros(1, 256, 14, 14, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    epilogue = bk.Epilogue(vectors[0], vectors[1], 'prelu', *vectors[2:])
    threshold, rows = torch.zeros(256, dtype=torch.int32), torch.zeros(64, 16, dtype=torch.int32)
    linear, image = bk.pack_weight(torch.ones(512, 512)), torch.zeros(1, 256, 14, 14)
    pool = dict(weight=torch.zeros(128, 256), bias=torch.zeros(128), pool=2)
    fixed = dict(w_words=weight, geometry=Conv2dGeometry(256, 256, 3, padding=1))
    yield Call(lambda: bk.binary_conv2d(words, **conv), 'binary_conv2d', fixed, dict(x_words=words))
    yield Call(lambda: bk.binary_conv2d_sign(words, **conv, threshold=threshold), 'binary_conv2d_sign',
               fixed | dict(threshold=threshold, flip=None, out_groups=1), dict(x_words=words))
    yield Call(lambda: bk.binary_block2d_(stream, words, **conv, epilogue=epilogue), 'binary_block2d',
               fixed | dict(epilogue=epilogue, dtype=stream.dtype, pack=True, keep=True),
               dict(x_words=words, shortcut=stream, out=stream))
    yield Call(lambda: bk.binary_linear(rows, linear, 512), 'binary_linear', dict(w_words=linear, features=512),
               dict(x_words=rows))
    yield Call(lambda: bk.pack_activations(image), 'pack_activations', dict(threshold=None, groups=1), dict(x=image))
    yield Call(lambda: bk.downsample2d(stream, **pool), 'downsample2d', pool, dict(x=stream))
    coded, zero, one = stream.to(torch.uint8), torch.zeros(1, dtype=torch.uint8), torch.ones(1)
    real, relu = torch.zeros(256, 256, 1, 1, dtype=torch.int8), bk.Epilogue(vectors[0], vectors[1], 'relu')
    fixed = dict(x_zero=zero, weight=real, geometry=Int8Conv2dGeometry(256, 256, 1), epilogue=relu, shortcut=None,
                 out_scale=one, out_zero=zero, dtype=torch.uint8, pack=False, keep=True)
    yield Call(lambda: bk.int8_conv2d(coded, zero, real, relu, out=bk.Quantization(one, zero)), 'int8_conv2d', fixed,
               dict(x=coded))


def measure(architecture: str = 'sm_90') -> Iterator[dict]:
    """Per backend and operator: microseconds of an eager call, a bound one and a bare launch, and of the bound one the ratio
    to a bare launch; medians of pairs."""
    for backend in BACKENDS:
        for eager, op, fixed, inputs in calls():
            with compiling_for(architecture) as gpu, bk.set_backend(backend), torch.no_grad():
                gpu.launches = deque(maxlen=1)  # keeps no results: their memory is taken again, as on a device
                try:
                    eager()
                except RuntimeError:
                    continue
                bound = partial(dispatch.bind(op, fixed, inputs), **inputs)
                bare = _bare(gpu.launches[-1])
                rounds = [[_seconds(call) for call in (eager, bound, bare)] for _ in range(ROUNDS)]
            of_each = zip(*rounds[1:], strict=True)
            row = dict(zip(('eager', 'bound', 'bare'), (round(statistics.median(times), 1) for times in of_each), strict=True))
            ratio = statistics.median(bound / bare for _, bound, bare in rounds[1:])
            yield dict(backend=backend, op=op, **row, ratio=round(ratio, 2))


def _bare(launch: Launch) -> Callable:
    kernel, options = launch.kernel.source.fn, launch.kernel.metadata
    options = {name: getattr(options, name) for name in ('num_warps', 'num_stages', 'enable_fp_fusion')}
    grid, arguments = launch.grid, launch.values
    return lambda: kernel[grid](*arguments, **options)


def _seconds(call: Callable) -> float:
    """Microseconds of one call, of this thread on its core: whoever else is on the machine does not count."""
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


if __name__ == '__main__':
    print('backend, operator, microseconds of an eager call, of a bound one, of a bare launch, ratio of the last two')
    for row in measure():
        print(*row.values())
