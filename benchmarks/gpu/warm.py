"""Compiles what the other stages launch, in several processes at once: they fill the cache of Triton on the disk."""

import argparse
import os
import subprocess
import sys

import torch

from . import convolutions, exactness
from .measure import Budget

PROCESSES = 12  # each needs its own context on the GPU


def warm(device: torch.device, backends: tuple[str, ...], dry: bool, budget: Budget) -> str:
    """Runs every part in a process of its own; what is not compiled when the time is up will be compiled later."""
    count = 2 if dry else min(PROCESSES, os.cpu_count() or 1)
    command = [sys.executable, '-m', 'benchmarks.gpu.warm', '--device', device.type, '--of', str(count),
               *(['--dry'] if dry else []), '--backends', *backends]
    running = [subprocess.Popen([*command, '--part', str(part)]) for part in range(count)]
    failed = 0
    for process in running:
        try:
            failed += process.wait(max(budget.left, 0.1)) != 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            failed += 1
    return f'{count} processes, {failed} of them cut short or failed'


def launch(device: torch.device, backends: tuple[str, ...], part: int, count: int, dry: bool) -> None:
    """One part: calls everything once, and leaves it to the stages themselves to report what fails."""
    for place, (op, call) in enumerate(exactness.small_cases(device) if dry else exactness.cases(device)):
        if place % count == part:
            for backend in backends:
                exactness.outcome(op, call, None, backend)
    layers = {layer._replace(size=8) for _, _, layer, _, _ in convolutions.plan()} if not dry else set()
    for place, layer in enumerate(sorted(layers)):
        if place % count == part:
            for method, (call, _) in convolutions.methods(layer, 32, device, backends, True).items():
                if method.startswith(backends):
                    call()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', required=True)
    parser.add_argument('--backends', nargs='+', required=True)
    parser.add_argument('--part', type=int, required=True)
    parser.add_argument('--of', type=int, required=True)
    parser.add_argument('--dry', action='store_true')
    args = parser.parse_args()
    launch(torch.device(args.device), tuple(args.backends), args.part, args.of, args.dry)


if __name__ == '__main__':
    main()
