"""What an eager call of a Triton operator costs on the host, without a GPU: up to the launch itself, which is left out.

``python -m benchmarks.gpu.host``. Times of a shared machine are worth little: what counts is the ratio to a bare launch of the
same kernel through Triton's ``JITFunction.run``, in interleaved pairs.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

import bnn_kernels as bk
from bnn_kernels.triton.offline import Launch, compiling_for

from .exactness import BACKENDS

PAIRS, CALLS = 7, 50


def calls() -> Iterator[tuple[str, Callable]]:
    """A layer of 256 channels at 14 x 14, and a linear layer of 512 features: name and call."""
    words, weight = torch.zeros(1, 14, 14, 8, dtype=torch.int32), bk.pack_weight(torch.ones(256, 256, 3, 3))
    conv, vectors = dict(w_words=weight, channels=256, padding=1), torch.ones(6, 256)
    stream = torch.zeros(1, 256, 14, 14, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    epilogue = bk.Epilogue(vectors[0], vectors[1], 'prelu', *vectors[2:])
    threshold, rows = torch.zeros(256, dtype=torch.int32), torch.zeros(64, 16, dtype=torch.int32)
    linear = bk.pack_weight(torch.ones(512, 512))
    yield 'binary_conv2d', lambda: bk.binary_conv2d(words, **conv)
    yield 'binary_conv2d_sign', lambda: bk.binary_conv2d_sign(words, **conv, threshold=threshold)
    yield 'binary_block2d_', lambda: bk.binary_block2d_(stream, words, **conv, epilogue=epilogue)
    yield 'binary_linear', lambda: bk.binary_linear(rows, linear, 512)
    image = torch.zeros(1, 256, 14, 14)
    yield 'pack_activations', lambda: bk.pack_activations(image)


def measure(architecture: str = 'sm_90') -> Iterator[dict]:
    """Per backend and operator: microseconds of a call and of a bare launch, medians of pairs, and the median ratio."""
    for backend in BACKENDS:
        for name, call in calls():
            with compiling_for(architecture) as gpu, bk.set_backend(backend):
                try:
                    call()
                except RuntimeError:
                    continue
                bare = _bare(gpu.launches[-1])
                pairs = [(_seconds(call), _seconds(bare)) for _ in range(PAIRS)]
            ours, bare = zip(*pairs[1:], strict=True)
            yield dict(backend=backend, op=name, microseconds=round(statistics.median(ours), 1),
                       bare=round(statistics.median(bare), 1),
                       ratio=round(statistics.median(a / b for a, b in pairs[1:]), 2))


def _bare(launch: Launch) -> Callable:
    kernel, options = launch.kernel.source.fn, launch.kernel.metadata
    options = {name: getattr(options, name) for name in ('num_warps', 'num_stages', 'enable_fp_fusion')}
    grid, arguments = launch.grid, tuple(launch.arguments.values())
    return lambda: kernel[grid](*arguments, **options)


def _seconds(call: Callable) -> float:
    """Microseconds of one call, of this thread on its core: whoever else is on the machine does not count."""
    start = time.thread_time()
    for _ in range(CALLS):
        call()
    return (time.thread_time() - start) / CALLS * 1e6


if __name__ == '__main__':
    for row in measure():
        print(*row.values())
