"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu.run --out DIR --minutes M``, from a bare checkout.

Stages come in the order of their worth. Each part of one is a process of its own with a limit (`supervise`): what breaks costs
its row. Files are complete after every row. ``--cache DIR`` takes kernels that ``benchmarks.gpu.warm`` has compiled elsewhere.
``--dry-run`` walks through all of it without a GPU: kernels are compiled, not launched, its times mean nothing, and its files
are named so.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from bnn_kernels.triton.offline import compiling_for

from . import ROOT, convolutions, exactness, measure, networks, rates, warm
from .supervise import Limits, Rows, supervised

STAGES = {  # and the most that each may take, a share of what is left
    'warm': 0.2, 'smoke': 0.3, 'exactness': 0.3, 'sanitizer': 0.15, 'rates': 0.15, 'layers': 0.5, 'blocks': 0.4, 'bodies': 0.5,
    'training': 0.5, 'others': 1}
ROW_SECONDS = 60
SANITIZERS = 'memcheck', 'racecheck'
FILES = {
    'exactness': ('stage', 'method', 'backend', 'op', 'case', 'result', 'note'),
    'rates': ('name', 'threads', 'per_clock', 'products_per_clock', 'note'),
    'convolutions': ('image', 'batch', 'networks', 'channels', 'outputs', 'kernel', 'stride', 'size', 'method', 'microseconds',
                     'low', 'high', 'cold', 'operations', 'bytes', 'note'),
    'networks': ('network', 'image', 'batch', 'form', 'median', 'low', 'high', 'microseconds', 'note'),
}


class Run:
    """One method per stage: it takes the seconds it has, and returns whether all was well."""

    def __init__(self, out: Path, dry: bool, log: Callable[[str], None]):
        self.out, self.dry, self.log = out, dry, log
        self.device = torch.device('cpu' if dry else 'cuda')
        facts = self._facts()
        self.machine, self.architecture = facts['name'], facts['architecture']
        (out / f'machine_{self.machine}.json').write_text(json.dumps(facts, indent=1))
        self.methods = warm.methods(self.architecture)
        self.files = {name: measure.Results(out / f'{name}_{self.machine}.csv', columns) for name, columns in FILES.items()}

    def warm(self, seconds: float) -> bool:
        """Compiles, on the CPUs alone; what is not reached will be compiled when it is launched."""
        processes = os.cpu_count() or 1
        return self.dry or warm.warm(self.architecture, processes, seconds, self.log)

    def smoke(self, seconds: float) -> bool:
        return self._exact('smoke', True, seconds)

    def exactness(self, seconds: float) -> bool:
        return self.dry or self._exact('exactness', False, seconds)

    def sanitizer(self, seconds: float) -> bool:
        """compute-sanitizer over the small calls of the tensor-core kernels; the reference runs on the CPU."""
        tool = shutil.which('compute-sanitizer') or shutil.which('/usr/local/cuda/bin/compute-sanitizer')
        if tool is None:
            self.log('sanitizer: left out, there is no compute-sanitizer here')
            return True
        fine, end = True, time.monotonic() + seconds
        environment = os.environ | {'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}  # else overruns stay inside
        with (self.out / f'sanitizer_{self.machine}.txt').open('w') as file:
            for name in SANITIZERS:
                command = [tool, '--tool', name, '--error-exitcode', '9', sys.executable, '-m', 'benchmarks.gpu.exactness',
                           '--small', '--backends', 'triton-tensorcore']
                process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                           env=environment)
                try:
                    code = process.wait(max(end - time.monotonic(), 1))
                except subprocess.TimeoutExpired:
                    code = 'out of time'
                finally:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                self.log(f'sanitizer: {name} ended with {code}')
                fine &= code == 0
        return fine

    def rates(self, seconds: float) -> bool:
        return self._rows('rates', partial(rates.rows, self.device, self.dry), seconds)

    def layers(self, seconds: float) -> bool:
        """The seven convolutions of ResNet-18, three images and batches: every method, the most wanted first."""
        settings = convolutions.RESNET18 * len(convolutions.FIRST)
        return self._convolutions(['triton-tensorcore', convolutions.PLAIN[:2], *self.methods[1:]], settings, seconds)

    def blocks(self, seconds: float) -> bool:
        return self._convolutions([convolutions.BLOCKS], convolutions.RESNET18, seconds)

    def bodies(self, seconds: float) -> bool:
        return self._rows('networks', partial(networks.rows, self.device, self.dry), seconds)

    def training(self, seconds: float) -> bool:
        return self._rows('networks', partial(networks.training, self.device, self.dry), seconds)

    def others(self, seconds: float) -> bool:
        """All other convolutions."""
        groups = ['triton-tensorcore', convolutions.PLAIN]
        return self.dry or self._convolutions(groups, -convolutions.RESNET18 * len(convolutions.FIRST), seconds)

    def _exact(self, stage: str, small: bool, seconds: float) -> bool:
        end, fine = time.monotonic() + seconds, True
        for method in self.methods:
            rows = partial(exactness.rows, self.device, method.partition(' ')[0], small, self.dry)
            of = dict(stage=stage, method=method)
            fine &= self._rows('exactness', rows, end - time.monotonic(), warm.METHODS[method], **of)
        return fine

    def _convolutions(self, groups: Sequence[str | Sequence[str]], settings: int, seconds: float) -> bool:
        end, fine = time.monotonic() + seconds, True
        for group in groups:
            methods = [f'{group} sign', f'{group} block'] if isinstance(group, str) else group
            rows = partial(convolutions.rows, self.device, methods, 1 if self.dry else settings, self.dry)
            environment = warm.METHODS.get(group, {}) if isinstance(group, str) else {}
            fine &= self._rows('convolutions', rows, end - time.monotonic(), environment)
        return fine

    def _rows(self, file: str, rows: Callable[[], Rows], seconds: float, environment: dict[str, str] | None = None,
              **of) -> bool:
        if self.dry:
            rows = partial(_some, rows)
        return supervised(rows, Limits(seconds, ROW_SECONDS), partial(self.files[file].add, **of), environment)

    def _facts(self) -> dict[str, str]:
        """Asked in a process of its own, for this one never touches the device; the first sign of life."""
        found = {}
        if not supervised(partial(_machine, self.device, self.dry), Limits(120, 120), lambda **row: found.update(row)):
            sys.exit(found['note'])
        commit = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True, check=False).stdout
        return found | dict(commit=commit.strip(), command=' '.join(sys.argv))


def _some(rows: Callable[[], Rows]) -> Rows:
    """For a dry run: all of a few, else some, spread over all; kernels are compiled for a GPU that is not there."""
    with compiling_for('sm_90'):
        every = list(rows())
        yield from every[::1 + len(every) // 7]


def _machine(device: torch.device, dry: bool) -> Rows:
    yield {}, lambda: measure.facts(device, dry)


def run(out: Path, minutes: float, stages: Sequence[str], dry: bool) -> bool:
    """Returns whether all was well."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (out / 'log.txt').open('a') as file:
        def log(line: str) -> None:
            print(line, flush=True)
            print(line, file=file, flush=True)

        everything, fine = Run(out, dry, log), True
        for stage in stages:
            begin = time.monotonic()
            well = getattr(everything, stage)((start + 60 * minutes - begin) * STAGES[stage])
            log(f'{stage}: {"well" if well else "NOT all was well"}, {time.monotonic() - begin:.0f} s')
            fine &= well
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for the results, at most eight small files')
    parser.add_argument('--minutes', type=float, default=12)
    parser.add_argument('--cache', type=Path, help='compiled kernels, of benchmarks.gpu.warm')
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=list(STAGES))
    parser.add_argument('--dry-run', action='store_true')
    args = parser.parse_args()
    if args.cache:
        os.environ['TRITON_CACHE_DIR'] = str(args.cache.resolve())
    if not run(args.out, args.minutes, args.stages, args.dry_run):
        sys.exit(1)


if __name__ == '__main__':
    main()
