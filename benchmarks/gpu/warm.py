"""Compiles everything that the stages launch, for a GPU that need not be there, in several processes at once.

``python -m benchmarks.gpu.warm --architecture sm_90 --cache DIR`` fills a folder that ``benchmarks.gpu.run --cache DIR``
takes on the device: with the same build of Triton, nothing is compiled there. It is also the complete test of what is
launched: every call is made twice, and at the second one nothing may be compiled or prepared.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import torch

from bnn_kernels.derived import Derived
from bnn_kernels.triton.offline import PROCESSORS, compiling_for

from . import convolutions, exactness

METHODS = {'triton-tensorcore': {}, 'triton-tensorcore mma': {'BNN_KERNELS_WGMMA': '0'}, 'triton-bitplane': {},
           'triton-popcount': {}}  # and their environment


def methods(architecture: str) -> list[str]:
    """Those that are different ones there: on Hopper the tensor cores are reached in two ways."""
    return [method for method in METHODS if architecture == 'sm_90' or 'mma' not in method]


def calls(architecture: str, backend: str) -> Iterator[tuple[str, Callable]]:
    """What is called, by name, and what makes the call and its tensors."""
    cpu = torch.device('cpu')
    sizes = [exactness.SMALL] if architecture == 'sm_90' else exactness.SIZES[1:2]  # else: tall tiles
    for op, call in chain(exactness.cases(cpu, sizes), exactness.sequences(cpu, True), exactness.sequences(cpu, False),
                          exactness.real_layers(cpu, exactness.SMALL)):
        yield op, partial(partial, exactness.outcome, op, call, None, backend)
    settings = list(convolutions.plan())
    first = settings[:convolutions.RESNET18 * len(convolutions.FIRST)]
    layers = {(layer, batch) for _, batch, layer, _ in first} | {(layer._replace(size=8), 1) for _, _, layer, _ in settings}
    for layer, batch in sorted(layers):
        for what in 'sign', 'block':
            yield f'{what} {layer} {batch}', lambda what=what, layer=layer, batch=batch: convolutions.call_of(
                f'{backend} {what}', layer, batch, cpu)[0]


@contextmanager
def preparations() -> Iterator[list[Callable]]:
    """What is made from tensors inside (`Derived`), one after another."""
    made, new = [], Derived.new

    def noted(self, *arguments):
        made.append(self.make)
        return new(self, *arguments)

    Derived.new = noted
    try:
        yield made
    finally:
        Derived.new = new


def compile_part(architecture: str, method: str, part: int, parts: int, end: float) -> tuple[Counter, list[str]]:
    """What came of every `parts`-th call until the time is up, and what failed."""
    torch.set_num_threads(1)
    os.environ.update(METHODS[method])
    counts, failed = Counter(), []
    with compiling_for(architecture) as gpu, preparations() as made:
        for place, (name, make) in enumerate(calls(architecture, method.partition(' ')[0])):
            if place % parts != part:
                continue
            if time.monotonic() > end:
                counts['not reached'] += 1
                continue
            try:
                call = make()
                result = call()
                before = len(gpu.kernels), len(made)
                call()
                if before != (len(gpu.kernels), len(made)):
                    raise RuntimeError('the second call compiles or prepares')
                counts['refused' if isinstance(result, str) and result.startswith('refused') else 'launched'] += 1
            except Exception as error:  # each call's reason is wanted
                counts['failed'] += 1
                failed.append(f'{method}: {name}: {next(iter(str(error).splitlines()), type(error).__name__)}')
            gpu.launches.clear()
        counts['kernels'] = len(gpu.kernels)
    return counts, failed


def warm(architecture: str, processes: int, seconds: float, log: Callable[[str], None] = print) -> bool:
    """Returns whether all were compiled; the log has a line per method, and one per failure."""
    fine, end = True, time.monotonic() + seconds
    with ProcessPoolExecutor(processes, get_context('fork')) as pool:
        for method in methods(architecture):
            start = time.monotonic()
            parts = list(pool.map(compile_part, *zip(*[(architecture, method, part, processes, end)
                                                       for part in range(processes)], strict=True)))
            counts = sum((part for part, _ in parts), Counter())
            failed = [line for _, lines in parts for line in lines]
            log(f'{architecture} {method}: {dict(counts)}, {time.monotonic() - start:.0f} s')
            for line in failed:
                log(line)
            fine &= not failed and not counts['not reached']
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--architecture', choices=PROCESSORS, default='sm_90')
    parser.add_argument('--cache', type=Path, help='default: where Triton keeps its own')
    parser.add_argument('--processes', type=int, default=os.cpu_count())
    parser.add_argument('--minutes', type=float, default=60)
    args = parser.parse_args()
    if args.cache:
        os.environ['TRITON_CACHE_DIR'] = str(args.cache.resolve())
    if not warm(args.architecture, args.processes, 60 * args.minutes):
        sys.exit(1)


if __name__ == '__main__':
    main()
