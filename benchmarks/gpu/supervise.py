"""Work on a device that may break: in processes that can be killed, row by row, and on again behind a row that fails.

The parent never touches the device. A child is forked, so that it starts at once, leads a process group of its own, and tells
of every row before it begins and after it is done. What raises is a row with its reason; a child that dies, hangs, or finds
its device broken is killed with all its children, and another one goes on behind the row.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import torch

Rows = Iterator[tuple[dict, Callable[[], dict]]]  # what a row is of, and what measures it
BROKEN = 'the device is broken: '


class Limits(NamedTuple):
    """Seconds."""

    all: float  # of them together
    row: float  # of one row, and of the start


def supervised(rows: Callable[[], Rows], limits: Limits, add: Callable[..., None],
               environment: dict[str, str] | None = None) -> bool:
    """Runs all rows; `add` takes each when it is done.

    Args:
        rows: made anew in each child; always the same ones in the same order.
        add: takes what the row is of and what came of it, with `note` '' or the reason why nothing did.

    Returns:
        whether every row was run, and none failed.
    """
    end, first, fine = time.monotonic() + limits.all, 0, True
    while True:
        here, there = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context('fork').Process(target=_child, args=(there, rows, first, environment or {}))
        child.start()
        _lead(child.pid)
        there.close()
        of, why = {}, ''
        try:
            while True:
                seconds = min(limits.row, end - time.monotonic())
                if not here.poll(max(seconds, 0)):
                    why = f'killed after {limits.row:.0f} s' if seconds == limits.row else 'out of time'
                    break
                kind, value = here.recv()
                if kind == 'begins':
                    first, of = first + 1, value
                elif kind == 'row':
                    fine &= not value['note']
                    add(**of | value)
                    if value['note'].startswith(BROKEN):
                        why = value['note']
                        break
                else:
                    return fine
        except EOFError:
            child.join(5)
            why = f'the process ended with {child.exitcode}'
        finally:
            _kill(child)
        fine = False
        if not why.startswith(BROKEN):
            add(**of, note=why)
        if why == 'out of time' or not of:  # or it does not even start
            return False


def _child(pipe, rows: Callable[[], Rows], first: int, environment: dict[str, str]) -> None:
    _lead(0)
    os.environ.update(environment)
    for place, (of, measure) in enumerate(rows()):
        if place < first:
            continue
        pipe.send(('begins', of))
        try:
            row = dict(note='') | measure()
        except Exception as error:  # of a compiler, a driver, or out of memory
            row = dict(note=next(iter(str(error).splitlines()), type(error).__name__))
            if torch.cuda.is_available():
                try:
                    torch.cuda.synchronize()
                except Exception:  # every call raises it from now on
                    row['note'] = BROKEN + row['note']
        pipe.send(('row', row))
    pipe.send(('ends', None))


def _lead(process: int) -> None:
    """Makes it the leader of a group; parent and child both see to it, so that it is one whoever runs first."""
    with suppress(OSError):  # it is gone
        os.setpgid(process, process)


def _kill(child: multiprocessing.Process) -> None:
    with suppress(ProcessLookupError):  # gone, and has left nobody
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
