"""Do training operators train as torch's operators do? ``python -m benchmarks.training.equality``.

Losses of ResNet-20 on CIFAR-10 from one seed, the same images: torch's operators, training operators with float32 and bfloat16
gradients, and as a control torch's operators from weights that differ in the last bit. Two runs part at the first sign that
rounding turns; they are equal as far as the control is. Results: one CSV file with a line per run.
"""

import argparse
from pathlib import Path

import torch
from mmengine.logging import MMLogger

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins import set_training_path
from bnn_plugins.analysis.machine import machine_facts
from bnn_plugins.apps.training_benchmark import runner_training
from bnn_plugins.binarize import after_step_, set_progress
from bnn_plugins.integrations.mmengine.run import load_config
from bnn_plugins.progress import track

from ..rows import write_row

CONFIG = Path(__file__).parents[2] / 'configs' / 'classification' / 'resnet20_recu_cifar10.py'
RESULTS = Path(__file__).with_suffix('.csv')
RUNS = {'torch': ('torch', 'float32'), 'control': ('torch', 'float32'), 'operators': ('operators', 'float32'),
        'operators, bfloat16 gradients': ('operators', 'bfloat16')}
FIRST = 10  # steps, whose differences stand in a column of their own: signs turn from the first one on


def losses(run: str, method: str, seed: int, steps: int) -> list[float]:
    """Of each step."""
    torch.manual_seed(seed)
    cfg = load_config(str(CONFIG), cfg_options={'model.backbone.method': method, 'randomness': dict(seed=seed)})
    training, found = runner_training(cfg, 64, None, torch.device('cpu')), []
    if run == 'control':
        with torch.no_grad():
            for parameter in training.model.parameters():
                parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, torch.inf)))
    with set_training_path(*RUNS[run]):
        for step in track(range(steps), f'{method}, {run}, seed {seed}'):
            torch.manual_seed(1000 * seed + step)
            loss = training.loss(training.model, training.batch())
            loss.backward()
            training.optimizer.step()
            after_step_(training.model)
            set_progress(training.model, step / steps)
            training.optimizer.zero_grad()
            found.append(loss.item())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=200, help='default %(default)s')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default %(default)s')
    parser.add_argument('--methods', nargs='+', default=['recu'], help='default %(default)s')
    parser.add_argument('--out', type=Path, default=RESULTS, help='default %(default)s')
    args = parser.parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    for method in args.methods:
        for seed in args.seeds:
            found = {run: losses(run, method, seed, args.steps) for run in RUNS}
            for run, own in found.items():
                apart = [abs(a - b) for a, b in zip(own, found['torch'], strict=True)]
                row = dict(method=method, run=run, seed=seed, steps=args.steps,
                           largest_difference_first=f'{max(apart[:FIRST]):.3g}',
                           mean_difference=f'{sum(apart) / len(apart):.3g}', largest_difference=f'{max(apart):.3g}',
                           last_losses=f'{sum(own[-20:]) / len(own[-20:]):.4f}')
                print(row)
                write_row(args.out, {**row, **machine_facts()}, ('method', 'run', 'seed', 'steps'),
                          lambda r: (r['method'], int(r['seed']), list(RUNS).index(r['run'])))
    print(f'{args.out} written')


if __name__ == '__main__':
    main()
