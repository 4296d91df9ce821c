"""Times of a GPU, and results files named by what they were measured on."""

import csv
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

REPEATS = 15
FLUSH_BYTES = 256 << 20  # written between cold calls: more than any L2 cache holds
LEAST_SECONDS = 200e-6  # of one measured interval, so that the resolution of the clock does not count


class Time(NamedTuple):
    """Microseconds of one call: the median of the repeats, and a tenth of them is below `low` or above `high`."""

    median: float
    low: float
    high: float


class Results:
    """A CSV file that is complete after every row. `add` fills what a row lacks of `columns` with ''."""

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.columns = path, columns
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', newline='') as file:
            csv.DictWriter(file, columns).writeheader()

    def add(self, **row) -> None:
        with self.path.open('a', newline='') as file:
            csv.DictWriter(file, self.columns).writerow(dict.fromkeys(self.columns, '') | row)


def facts(device: torch.device, dry: bool) -> dict[str, str]:
    """`name` is for file names: the device and the versions."""
    import triton
    if not dry and not torch.cuda.is_available():
        raise RuntimeError('torch sees no GPU: --dry-run walks through the benchmark without one.')
    gpu = 'dry-run' if dry else torch.cuda.get_device_name(device)
    major, minor = (9, 0) if dry else torch.cuda.get_device_capability(device)
    name = f'{gpu.replace(" ", "-")}_torch-{torch.__version__.split("+")[0]}_triton-{triton.__version__.split("+")[0]}'
    return dict(name=name, gpu=gpu, architecture=f'sm_{major}{minor}', torch=torch.__version__, triton=triton.__version__,
                cuda=str(torch.version.cuda), cudnn=str(torch.backends.cudnn.version()))


def time_of(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> Time:
    """How long the GPU takes for `call`, replayed in a CUDA graph: launches of the host do not count.

    The operands stay where the call before has left them, in the L2 cache if they fit, as between the layers of a network.
    """
    if device.type != 'cuda':
        return _quantiles([_seconds(call) for _ in range(2)])
    stream = _warmed(call)
    once = _replayed(call, 1, 3, stream)
    count = max(1, min(200, round(LEAST_SECONDS / max(min(once), 1e-6))))
    return _quantiles([seconds / count for seconds in _replayed(call, count, repeats, stream)])


def cold_time_of(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> Time:
    """As `time_of`, one call at a time, with nothing of its operands in the L2 cache."""
    if device.type != 'cuda':
        return _quantiles([_seconds(call) for _ in range(2)])
    flush, stream = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device), _warmed(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        call()
    return _quantiles([_timed(graph, flush.zero_) for _ in range(repeats)])


def _warmed(call) -> torch.cuda.Stream:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    return stream


def _replayed(call, count: int, repeats: int, stream) -> list[float]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    graph.replay()
    return [_timed(graph) for _ in range(repeats)]


def _timed(graph, before: Callable[[], object] = lambda: None) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quantiles(seconds: list[float]) -> Time:
    tenths = statistics.quantiles(seconds, n=10, method='inclusive')
    return Time(*(round(1e6 * value, 3) for value in (statistics.median(seconds), tenths[0], tenths[-1])))
