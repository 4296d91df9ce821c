"""How long calls take, measured side by side: A B C A B C ..., so that a slow second of the machine hits them all alike.

Each sample begins with a call that is not timed: what counts is the throughput of a stream of images, whose caches hold what
the same network left there, not what its neighbour in the measurement did.

One thread is timed by the CPU time of the process (engines beside torch have threads of their own), which leaves out
what other programs of the machine took; several threads by the wall clock; a GPU by its events. What is reported is the
median, with quartiles and the minimum.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

# The shortest sample: below this, the cost of asking the time shows.
MIN_SECONDS = 0.004


class HostClock:
    """The CPU time of this process (``threads=1``), or the wall clock; ``number``: that of the operating system."""

    def __init__(self, threads: int):
        self.name = 'process CPU time' if threads == 1 else 'wall clock'
        self.mark: Callable[[], float] = time.process_time if threads == 1 else time.perf_counter
        self.number = time.CLOCK_PROCESS_CPUTIME_ID if threads == 1 else time.CLOCK_MONOTONIC

    def between(self, start: float, end: float) -> float:
        """Seconds."""
        return end - start


class CudaClock:
    """Events of the current stream. Asking for the time between two of them waits for the second."""

    name = 'CUDA events'

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Seconds."""
        end.synchronize()
        return start.elapsed_time(end) / 1e3


Clock = HostClock | CudaClock


def make_clock(device: torch.device | str, threads: int) -> Clock:
    return CudaClock() if torch.device(device).type == 'cuda' else HostClock(threads)


@dataclass
class Timing:
    """Seconds per call, one value per round."""

    samples: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        return min(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third; both are the sample where there is only one."""
        if len(self.samples) == 1:
            return self.samples[0], self.samples[0]
        first, _, third = statistics.quantiles(self.samples, n=4, method='inclusive')
        return first, third


def measure(calls: dict[str, Callable[[], object]], clock: Clock, rounds: int = 15, warmup: int = 3, budget: float = math.inf,
            min_seconds: float = MIN_SECONDS, advance: Callable[[], None] | None = None) -> dict[str, Timing]:
    """Time ``calls`` in turns.

    Args:
        rounds: samples of each call.
        warmup: calls of each before that; from them follows how many calls make one sample, at least ``min_seconds`` long.
        budget: seconds for all rounds together; where they do not fit, there are fewer, but at least five (or ``rounds``).
        advance: called after each round.
    """
    repeats, expected = {}, 0.0
    for name, call in calls.items():
        seconds = max(min(sample(call, clock, 1) for _ in range(max(warmup, 1))), 1e-7)
        repeats[name] = max(1, math.ceil(min_seconds / seconds))
        expected += (repeats[name] + 1) * seconds
    rounds = int(max(min(rounds, 5), min(rounds, budget / max(expected, 1e-9))))
    timings = {name: Timing() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            timings[name].samples.append(sample(call, clock, repeats[name]))
        if advance:
            advance()
    return timings


def sample(call: Callable[[], object], clock: Clock, repeats: int) -> float:
    """Seconds per call of ``repeats`` calls in a row."""
    start = clock.mark()
    for _ in range(repeats):
        call()
    return clock.between(start, clock.mark()) / repeats


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """``count`` threads of torch, and of what shares its OpenMP, until the end of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensor_tree(function: Callable, value: object) -> object:
    """``value`` with ``function`` applied to its tensors, through tuples, lists and dicts."""
    return torch.utils._pytree.tree_map_only(torch.Tensor, function, value)


def tensors_of(value: object) -> list[torch.Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
