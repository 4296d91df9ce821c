"""Python of each hook and rule in a training step of many small binary layers: ``python -m benchmarks.scale.updates``.

Each is measured beside a plain loop over all modules that does the same ("before"), in turns, by the CPU time of this process;
the least of all turns counts. Tensors are so small that what remains is the work of the host. One CSV in ``--out``.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from bnn_plugins.analysis.machine import machine_facts
from bnn_plugins.binarize import TrainingUpdates, sign
from bnn_plugins.engine import Bop
from bnn_plugins.engine.clipping import AdaptiveClipping, factors, unit_norm
from bnn_plugins.layers import BinaryLinear

RESULTS = Path(__file__).parent / 'results/updates.csv'


@torch.no_grad()
def one_by_one(model: nn.Module) -> None:
    """What follows a step, module by module."""
    for module in model.modules():
        if (advance := getattr(module, 'set_progress', None)) is not None:
            advance(0.5)
    for module in model.modules():
        if (limit := getattr(module, 'latent_clip', None)) is not None:
            module.weight.clamp_(-limit, limit)
    for module in model.modules():
        if (binarizer := getattr(module, 'weight_binarizer', None)) is not None:
            binarizer.after_step(module.weight)


@torch.no_grad()
def clip_one_by_one(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad.mul_(factors(unit_norm(p), unit_norm(p.grad), 0.02, 1e-3))


@torch.no_grad()
def flip_one_by_one(model: nn.Module, momenta: list[torch.Tensor]) -> None:
    for p, momentum in zip(model.parameters(), momenta, strict=True):
        momentum.lerp_(p.grad, 1e-4)
        p.copy_(sign(p))
        p.mul_(torch.where(p * momentum > 1e-8, -1.0, 1.0))


def cases(layers: int) -> dict[str, tuple[Callable, Callable]]:
    """``{name: (before, now)}``."""
    found = {}
    for method in ('binarynet', 'recu', 'irnet', 'rbnn', 'rebnn', 'bnext'):
        model = network(layers, method)
        updates = TrainingUpdates(model)
        found[f'schedules, clipping, rules of {method}'] = (
            lambda model=model: one_by_one(model), lambda updates=updates: (updates.set_progress(0.5), updates.after_step()))
    model = network(layers, 'binarynet')
    parameters = list(model.parameters())
    for p in parameters:
        p.grad = torch.randn_like(p)
    found['adaptive gradient clipping'] = (lambda: clip_one_by_one(model), AdaptiveClipping(parameters))
    optimizer = Bop([dict(params=parameters, latent=True)])
    momenta = [torch.zeros_like(p) for p in parameters]
    found['Bop'] = (lambda: flip_one_by_one(model, momenta), optimizer.step)
    return found


def network(layers: int, method: str) -> nn.Module:
    return nn.Sequential(*(BinaryLinear(8, 8, bias=False, method=method) for _ in range(layers)))


def measure(pair: tuple[Callable, Callable], turns: int) -> tuple[float, float]:
    best = [float('inf'), float('inf')]
    for _ in range(turns):
        for index, call in enumerate(pair):
            start = time.process_time()
            call()
            best[index] = min(best[index], time.process_time() - start)
    return best[0], best[1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--layers', type=int, default=1000)
    parser.add_argument('--turns', type=int, default=20)
    parser.add_argument('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    facts = machine_facts()
    rows = []
    for name, pair in cases(args.layers).items():
        before, now = measure(pair, args.turns)
        rows.append(dict(rule=name, layers=args.layers, before_ms=f'{1e3 * before:.2f}', now_ms=f'{1e3 * now:.2f}',
                         processor=facts['processor'], torch=facts['torch'], commit=facts['commit']))
        print(f'{name}: {1e3 * before:.2f} ms before, {1e3 * now:.2f} ms now')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
