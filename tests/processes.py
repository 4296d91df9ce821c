"""Several processes that train together over the loopback device, without the seconds that each would take to import.

They are forked from a server that has imported what the tools need, and run what a launcher would start.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
context = multiprocessing.get_context('forkserver')
context.set_forkserver_preload(['torch', 'bnn_plugins', 'mmdet.apis', 'mmdet.datasets', 'mmdet.models', 'mmdet.engine',
                                'mmdet.evaluation', 'mmdet.visualization', 'bnn_plugins.apps.diffusion.train',
                                'bnn_plugins.integrations.mmengine.run'])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def worker(function: Callable, args: tuple, environment: dict, log: str, threads: int = 1) -> None:
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, 'w', buffering=1), os.fdopen(2, 'w', buffering=1)
    import torch
    torch.set_num_threads(threads)
    try:
        function(*args)
    except SystemExit as stop:
        print(stop.code if isinstance(stop.code, str) else '', flush=True)
        os._exit(0 if stop.code is None else 1 if isinstance(stop.code, str) else stop.code)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)  # without the order in which objects of a process group are destroyed


class Group:
    """``count`` processes that run ``function(*args)`` each, as a launcher would start them."""

    def __init__(self, count: int, function: Callable, *args, folder: Path, environment: dict | None = None):
        port = str(free_port())
        self.logs = [Path(folder) / f'log-{port}-{rank}.txt' for rank in range(count)]
        shared = dict(WORLD_SIZE=str(count), LOCAL_WORLD_SIZE=str(count), MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                      OMP_NUM_THREADS='1') if count > 1 else {}
        self.processes = []
        for rank, log in enumerate(self.logs):
            own = shared | (dict(RANK=str(rank), LOCAL_RANK=str(rank)) if count > 1 else {}) | (environment or {})
            self.processes.append(context.Process(target=worker, args=(function, args, own, str(log)), daemon=True))
        for process in self.processes:
            process.start()

    def wait(self, timeout: float = 600) -> list[int | None]:
        """Exit codes; all are ended where one failed or the time is over."""
        end = time.monotonic() + timeout
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < end:
            if any(p.exitcode not in (None, 0) for p in self.processes):
                end = min(end, time.monotonic() + 2)
            time.sleep(0.02)
        codes = [p.exitcode for p in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        return codes

    def output(self) -> str:
        return '\n'.join(f'--- process {rank}\n{log.read_text()[-4000:] if log.is_file() else ""}'
                         for rank, log in enumerate(self.logs))


def together(count: int, function: Callable, *args, folder: Path, timeout: float = 600) -> str:
    """Run a :class:`Group` to its end; what it printed. Fails where a process fails or hangs."""
    group = Group(count, function, *args, folder=folder)
    codes = group.wait(timeout)
    assert codes == [0] * count, f'exit codes {codes}\n{group.output()}'
    return group.output()


def run_tool(name: str, arguments: list[str]) -> None:
    """A tool, as ``python tools/NAME ARGUMENTS`` runs it."""
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(REPOSITORY / 'tools' / name), run_name='__main__')
