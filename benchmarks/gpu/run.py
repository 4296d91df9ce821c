"""Everything that needs a GPU, in one command: ``python -m benchmarks.gpu.run --out DIR``, in at most eight minutes.

The stages do not depend on each other, and each has its share of the time. Files are complete after every row: what was
measured before the time ran out, or before something broke, is there. ``--dry-run`` walks through all of it on the CPU, in
seconds, with tiny layers: its times mean nothing and its files say so.
"""

import argparse
import functools
import itertools
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch

from . import convolutions, exactness, measure, plots, rates, warm

STAGES = ('warm', 'exactness', 'sanitizer', 'rates', 'convolutions', 'plots')
SHARES = {'warm': 0.2, 'exactness': 0.2, 'sanitizer': 0.2, 'rates': 0.15, 'convolutions': 0.95, 'plots': 1}  # of what is left
SANITIZERS = ('memcheck', 'racecheck')


class Run:
    """One method per stage: it takes its budget and returns a sentence on what came of it; raising is a failure."""

    def __init__(self, out: Path, device: torch.device):
        self.out, self.device = out, device
        self.dry = device.type != 'cuda'
        self.machine = measure.machine(device)
        self.backends = ('reference',) if self.dry else exactness.BACKENDS

    def warm(self, budget: measure.Budget) -> str:
        return warm.warm(self.device, self.backends, self.dry, budget)

    def exactness(self, budget: measure.Budget) -> str:
        results = measure.Results(self.out, 'exactness', self.machine)
        if not exactness.check(self.device, self.backends, self.dry, budget, results.add):
            raise RuntimeError(f'a backend is not exact: {results.path}')
        return str(results.path)

    def sanitizer(self, budget: measure.Budget) -> str:
        """compute-sanitizer over small shapes of the tensor-core kernels."""
        tool = shutil.which('compute-sanitizer') or shutil.which('/usr/local/cuda/bin/compute-sanitizer')
        if tool is None and not self.dry:
            return 'left out: there is no compute-sanitizer here'
        command = [sys.executable, '-m', 'benchmarks.gpu.exactness', '--small', '--device', self.device.type, '--backends',
                   self.backends[0]]
        for name in SANITIZERS[:1] if self.dry else SANITIZERS:
            checked = command if self.dry else [tool, '--tool', name, '--error-exitcode', '9', *command]
            log = self.out / f'sanitizer-{name}_{self.machine}.txt'
            with log.open('w') as file:
                done = subprocess.run(checked, stdout=file, stderr=subprocess.STDOUT, timeout=max(budget.left, 1), check=False,
                                      env=os.environ | {'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'})  # else overruns stay inside
            if done.returncode:
                raise RuntimeError(f'compute-sanitizer found something or could not run: {log}')
        return str(self.out)

    def rates(self, budget: measure.Budget) -> str:
        if self.dry:
            return f'left out: {sum(1 for _ in rates.rates())} kernels need a GPU'
        results = measure.Results(self.out, 'rates', self.machine)
        rates.measure(self.device, budget, results.add)
        return str(results.path)

    def convolutions(self, budget: measure.Budget) -> str:
        torch.backends.cudnn.benchmark = True  # cuDNN at its best
        results = measure.Results(self.out, 'convolutions', self.machine)
        plan = itertools.islice(convolutions.plan((32,), (1,), ((32, 1),)), 12) if self.dry else convolutions.plan()
        convolutions.measure(plan, self.device, self.backends, budget, results.add)
        return str(results.path)

    def plots(self, budget: measure.Budget) -> str:
        files = [picture for file in sorted(self.out.glob('convolutions_*.csv')) for picture in plots.draw(file)]
        return ' '.join(map(str, files)) or 'left out: nothing to draw'


def run(out: Path, seconds: float, stages: tuple[str, ...], dry_run: bool) -> bool:
    """Returns whether no stage failed."""
    if not dry_run and not torch.cuda.is_available():
        sys.exit('torch sees no GPU: --dry-run walks through the benchmark without one.')
    budget = measure.Budget(seconds)
    everything = Run(out, torch.device('cpu' if dry_run else 'cuda'))
    log = functools.partial(print, flush=True)
    fine = True
    for stage in stages:
        start = time.monotonic()
        try:
            said = getattr(everything, stage)(budget.share(SHARES[stage]))
        except Exception:  # the next stages are worth having all the same
            fine, said = False, f'FAILED\n{traceback.format_exc()}'
        log(f'{stage} ({time.monotonic() - start:.0f} s): {said}')
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, required=True, help='folder for the results')
    parser.add_argument('--seconds', type=float, default=470)
    parser.add_argument('--stages', nargs='+', choices=STAGES, default=STAGES)
    parser.add_argument('--dry-run', action='store_true')
    args = parser.parse_args()
    if not run(args.out, args.seconds, tuple(args.stages), args.dry_run):
        sys.exit(1)


if __name__ == '__main__':
    main()
