"""Results files: one CSV row per run, of several processes that work at once."""

import csv
import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process holds the lock, for which it may wait; a killed process holds nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open(newline=''))) if path.exists() else []


def write_row(path: Path, row: dict, keys: Sequence[str], order: Callable[[dict[str, str]], object]) -> None:
    """Add the row of one run, or replace the one that agrees in ``keys``; processes wait for each other."""
    row = {name: str(value) for name, value in row.items()}
    with locked(path.with_suffix('.lock'), wait=True):
        rows = [r for r in read_rows(path) if any(r[key] != row[key] for key in keys)]
        part = path.with_suffix('.part')
        with part.open('w', newline='') as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(sorted([*rows, row], key=order))
        part.replace(path)


def spread(values: list[str], digits: int = 1, factor: float = 1.0) -> str:
    """Mean and, for several values, standard deviation; '' where the values are empty."""
    if '' in values:
        return ''
    numbers = [float(value) * factor for value in values]
    return f'{mean(numbers):.{digits}f}' + (f' ± {stdev(numbers):.{digits}f}' if len(numbers) > 1 else '')
