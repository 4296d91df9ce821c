"""Times of a GPU, results files named by what they were measured on, and a budget of seconds."""

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

REPEATS = 15
LEAST_SECONDS = 200e-6  # of one measured interval, so that the resolution of the clock does not count


class Time(NamedTuple):
    """Microseconds of one call: the median of the repeats, and a tenth of them is below `low` or above `high`."""

    median: float
    low: float
    high: float


class Budget:
    """Seconds that may be spent; a stage gets its own share of what is left."""

    def __init__(self, seconds: float):
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def share(self, fraction: float) -> 'Budget':
        return Budget(self.left * fraction)


class Results:
    """A CSV file that is complete after every row."""

    def __init__(self, folder: Path, name: str, machine: str):
        self.path = folder / f'{name}_{machine}.csv'
        self.columns = None
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, **row) -> None:
        first = self.columns is None
        if first:
            self.columns = list(row)
        with self.path.open('w' if first else 'a', newline='') as file:
            writer = csv.DictWriter(file, self.columns)
            if first:
                writer.writeheader()
            writer.writerow(row)


def machine(device: torch.device) -> str:
    """For file names: the device and the versions."""
    import triton
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else 'dry-run'
    return f'{name.replace(" ", "-")}_torch-{torch.__version__.split("+")[0]}_triton-{triton.__version__.split("+")[0]}'


def time_of(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> Time:
    """How long the GPU takes for `call`, replayed in a CUDA graph: launches of the host do not count.

    The operands stay where the call before has left them, in the L2 cache if they fit, as between the layers of a network.
    """
    if device.type != 'cuda':
        return _quantiles([_seconds(call) for _ in range(2)])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    once = _replayed(call, 1, 3, stream)
    count = max(1, min(200, round(LEAST_SECONDS / max(min(once), 1e-6))))
    return _quantiles([seconds / count for seconds in _replayed(call, count, repeats, stream)])


def _replayed(call, count: int, repeats: int, stream) -> list[float]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    graph.replay()
    seconds = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3)
    return seconds


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quantiles(seconds: list[float]) -> Time:
    tenths = statistics.quantiles(seconds, n=10, method='inclusive')
    return Time(*(round(1e6 * value, 3) for value in (statistics.median(seconds), tenths[0], tenths[-1])))
