"""What training binary networks costs beside their float twins, in one command: ``python -m benchmarks.training.run``.

Every case is one interleaved run of the float twin (float32, and under bfloat16 autocast) and of all methods, on random images
(the digits are real). Results: one CSV file per machine in ``--out``; a case that is measured again replaces its lines.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from rich.console import Console

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.analysis.machine import machine_facts
from bnn_plugins.apps.training_benchmark import print_training, train_benchmark
from bnn_plugins.integrations.mmengine.summarize import MIN_WIDTH

from ..cpu.run import machine_name
from ..rows import write_row

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'
METHODS = {'binarynet': ('binarynet', None), 'reactnet': ('reactnet', None), 'recu': ('recu', None),
           'recu tau=2': ('recu', dict(tau=2))}
KEYS = ('case', 'variant', 'batch', 'height', 'width', 'threads')


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        config: below ``configs``. batches: sizes. size: (height, width) of random images, ``None``: the config's images.
        method: keys of the config that name the method; expand: that names the expansion.
    """

    config: str
    batches: tuple[int, ...]
    size: tuple[int, int] | None
    method: tuple[str, ...] = ('model.backbone.method',)
    expand: str = 'model.backbone.expand'

    def variants(self, names: list[str]) -> dict[str, dict]:
        """Overrides of the config, by name of the method."""
        return {name: {**dict.fromkeys(self.method, METHODS[name][0]),
                       **({self.expand: METHODS[name][1]} if METHODS[name][1] else {})} for name in names}


CASES = {
    'resnet20': Case('classification/resnet20_recu_cifar10.py', (64, 128), (32, 32)),
    'resnet18': Case('classification/resnet18_recu_imagenet.py', (32,), (64, 64)),
    'bccd': Case('detection/retinanet_bnn-r18_fpn_bccd.py', (4,), (256, 320), ('model.backbone.method', 'model.neck.method')),
    'digits': Case('diffusion/ddpm_reactnet_digits.py', (64,), None, ('model.method',), 'model.expand'),
    'resnet18-224': Case('classification/resnet18_recu_imagenet.py', (32,), (224, 224)),  # for its memory; tens of gigabytes
}
STANDARD = ('resnet20', 'resnet18', 'bccd', 'digits')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', choices=CASES, default=STANDARD, help='these cases; default %(default)s')
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS), help='default all')
    parser.add_argument('--batch', type=int, nargs='+', help='instead of those of the cases')
    parser.add_argument('--threads', type=int, nargs='+', default=[1], help='default 1')
    parser.add_argument('--rounds', type=int, default=15, help='steps of each; default %(default)s')
    parser.add_argument('--budget', type=float, default=300.0, help='seconds for each case; default %(default)s')
    parser.add_argument('--compiled', action='store_true', help='the float twin with torch.compile, too')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder of the CSV file; default %(default)s')
    args = parser.parse_args()
    console, path = Console(width=max(Console().width, MIN_WIDTH)), args.out / f'{machine_name()}.csv'
    for name, threads in product(args.only, args.threads):
        case = CASES[name]
        for batch in args.batch or case.batches:
            rows = train_benchmark(str(ROOT / 'configs' / case.config), case.variants(args.methods), batch, case.size, threads,
                                   rounds=args.rounds, budget=args.budget, compiled=args.compiled,
                                   gradients=('float32', 'bfloat16'))
            print_training(rows, console)
            for row in rows:
                write_row(path, {'case': name, **row.line(), **machine_facts()}, KEYS,
                          lambda r: (list(CASES).index(r['case']), int(r['batch']), int(r['threads'])))
    print(f'{path} written')


if __name__ == '__main__':
    main()
