"""Train and evaluate a grid of classifiers; one CSV row per run. Stop it when you like: it goes on where it stopped.

    python -m benchmarks.accuracy.run cpu_methods --workers 2

A held-out part of the training images chooses the checkpoint; the test images are looked at once, at its end. Several
processes may work on one grid: each run is done by the one that locks its folder.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from bnn_plugins import __version__
from bnn_plugins.analysis import processor
from bnn_plugins.integrations.mmengine.run import build_runner, load_config

from ..rows import locked, read_rows, write_row
from .cost import Cost, cost
from .grid import Run, load_grid, runs
from .hooks import DeadlineHook, TestAccuracyHook, evaluate

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'


@dataclass
class Row(Cost):
    """One run.

    Attributes:
        key, network, method, expand, epochs, seed: which one; steps: of the optimizer.
        epoch: the one with the best validation accuracy, whose checkpoint was tested.
        train_top1, val_top1, test_top1: of that checkpoint, in percent; of the training images without augmentation.
        last_val_top1: after the last epoch.
        best_test_top1: the best of the test accuracies at all validations, only to compare with papers; '' where not asked.
        minutes: of the training iterations. device: what they ran on. threads: of torch.
    """

    key: str
    network: str
    method: str
    expand: str
    epochs: int
    seed: int
    steps: int
    epoch: int
    train_top1: float
    val_top1: float
    test_top1: float
    last_val_top1: float
    best_test_top1: float | str
    minutes: float
    device: str
    threads: int
    torch: str
    bnn_plugins: str


def write(path: Path, row: Row) -> None:
    """The costs are the last columns."""
    values = asdict(row)
    costs = {name: values.pop(name) for name in Cost.__dataclass_fields__}
    write_row(path, values | costs, ['key'],
              lambda r: (r['network'], r['method'], r['expand'], int(r['epochs']), int(r['seed'])))


def run_config(run: Run, grid: Config, work_dir: Path) -> Config:
    """The config of one run."""
    cfg = load_config(str(ROOT / grid.config), str(work_dir), {**grid.get('options', {}), **run.overrides(grid)})
    cfg.pop('steps', None)
    return cfg


def train(run: Run, grid: Config, work_dir: Path, deadline: float) -> Row | None:
    """Train (or resume) one run and evaluate it; ``None`` where the time was over before the training was."""
    cfg = run_config(run, grid, work_dir)
    cfg.resume = True
    runner = build_runner(cfg)
    stop = DeadlineHook(deadline)
    runner.register_hook(stop, priority='LOWEST')
    if grid.get('track_test'):
        runner.register_hook(TestAccuracyHook())
    runner.train()
    if stop.stopped:
        return None
    scalars = runner.message_hub.log_scalars
    best = max(work_dir.glob('best_top1_epoch_*.pth'), key=lambda path: path.stat().st_mtime)
    last_val = scalars['val/top1'].current()
    load_checkpoint(runner.model, str(best), map_location='cpu')
    accuracy = {split: evaluate(runner.model, runner.build_dataloader(cfg[f'{name}_dataloader']))['top1']
                for split, name in (('train', 'train'), ('val', 'val'), ('test', 'test'))}
    tested = scalars['test/top1'].data[0].max() if grid.get('track_test') else ''
    sample = next(iter(runner.val_dataloader))
    image = runner.model.data_preprocessor(sample)['inputs'][:1]
    device = torch.cuda.get_device_name() if image.is_cuda else processor()
    return Row(**asdict(cost(runner.model, image)), key=run.key, network=run.network, method=run.method_name,
               expand=run.expand_name, epochs=run.epochs, seed=run.seed, steps=runner.iter,
               epoch=int(best.stem.rpartition('_')[2]), train_top1=round(accuracy['train'], 2),
               val_top1=round(accuracy['val'], 2), test_top1=round(accuracy['test'], 2), last_val_top1=round(last_val, 2),
               best_test_top1=tested if tested == '' else round(float(tested), 2),
               minutes=round(sum(scalars['train/time'].data[0]) / 60, 2), device=device, threads=torch.get_num_threads(),
               torch=torch.__version__, bnn_plugins=__version__)


def work(name: str, grid: Config, root: Path, out: Path, deadline: float) -> None:
    """Do what is left of the grid, run by run, until the time is over."""
    for run in runs(grid, name):
        if time.monotonic() > deadline:
            return
        with locked(root / run.key / 'lock') as mine:
            if not mine or any(row['key'] == run.key for row in read_rows(out)):
                continue
            row = train(run, grid, root / run.key, deadline)
            if row is not None:
                write(out, row)
                print(f'{row.key}: test {row.test_top1}, validation {row.val_top1}, {row.minutes} minutes', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', help='a name in benchmarks/accuracy/grids, or the path of a file')
    parser.add_argument('--work-dir', help='one folder per run; default work_dirs/accuracy/<grid>')
    parser.add_argument('--out', help='default benchmarks/accuracy/results/<grid>.csv')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='stop (to go on later) after that time')
    parser.add_argument('--workers', type=int, default=1, help='processes that share the runs')
    parser.add_argument('--threads', type=int, default=1, help='of torch, in each process')
    parser.add_argument('--list', action='store_true', help='list the runs, and whether they are done')
    args = parser.parse_args()

    grid, name = load_grid(args.grid), Path(args.grid).stem
    root = Path(args.work_dir or ROOT / 'work_dirs/accuracy' / name)
    out = Path(args.out or RESULTS / f'{name}.csv')
    if args.list:
        done = {row['key'] for row in read_rows(out)}
        for run in runs(grid, name):
            print('done' if run.key in done else '    ', run.key)
        return
    helpers = [subprocess.Popen([sys.executable, '-m', 'benchmarks.accuracy.run', args.grid, '--work-dir', str(root), '--out',
                                 str(out), '--minutes', str(args.minutes), '--threads', str(args.threads)], cwd=ROOT)
               for _ in range(args.workers - 1)]
    torch.set_num_threads(args.threads)
    work(name, grid, root, out, time.monotonic() + 60 * args.minutes)
    failed = [helper.wait() for helper in helpers]  # all of them
    if any(failed):
        sys.exit('a worker failed, see above; run the same command again to go on')


if __name__ == '__main__':
    main()
