"""Train and evaluate a grid of classifiers; one CSV row per run. Stop it when you like: it goes on where it stopped.

    python -m benchmarks.accuracy.run cpu_resnet20 --minutes 60

Where a part of the training images is held out, it chooses the checkpoint, and the test images are looked at once, at its end.
Where all images are trained on (``folds=2`` in the grid's ``val_evaluator``), the validation images are the test images: the
best epoch on each half of them is measured on the other half. Several processes may work on one grid: each run is done by the
one that locks its folder. Checkpoints of unfinished runs are copied beside the results, where another machine finds them;
``--minutes 0`` does only that.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner, load_checkpoint

from bnn_plugins import __version__
from bnn_plugins.analysis import processor
from bnn_plugins.integrations.mmengine.run import build_runner, latest_checkpoint, load_config

from ..rows import locked, read_rows, write_row
from .cost import Cost, cost
from .grid import Run, load_grid, runs
from .hooks import DeadlineHook, ProgressHook, evaluate
from .state import restore_state, save_state

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'


@dataclass
class Row(Cost):
    """One run.

    Attributes:
        key, network, method, expand, epochs, seed: which one; steps: of the optimizer.
        epoch: the one with the best validation accuracy, whose checkpoint was tested; the last where nothing is held out.
        train_top1: of that checkpoint, in percent, of the training images without augmentation.
        val_top1: of that checkpoint; '' where nothing is held out. last_val_top1: after the last epoch.
        test_top1: of that checkpoint; where nothing is held out: of the epoch that is best on one half of the test images,
            measured on the other half, the mean of both ways.
        last_test_top1: of all test images after the last epoch, which nothing chose.
        best_test_top1: the best of the test accuracies at all validations, only to compare with papers; '' where unknown.
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
    val_top1: float | str
    test_top1: float
    last_val_top1: float | str
    last_test_top1: float
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
    for scheduler in cfg.param_scheduler:
        if scheduler.get('end') == cfg.max_epochs:
            scheduler.end = run.epochs
    return cfg


def train(run: Run, grid: Config, work_dir: Path, deadline: float) -> tuple[Row | None, dict]:
    """Train (or resume) one run and evaluate it; no row where the time was over before the training was.

    Returns:
        the row, and the accuracies at the validations so far.
    """
    cfg = run_config(run, grid, work_dir)
    cfg.resume = True
    runner = build_runner(cfg)
    stop = DeadlineHook(deadline)
    runner.register_hook(ProgressHook(run.key))
    runner.register_hook(stop)
    runner.train()
    scalars = runner.message_hub.log_scalars
    curve = dict(key=run.key, interval=runner.train_loop.val_interval,
                 val_top1=' '.join(f'{value:.2f}' for value in scalars['val/top1'].data[0]) if 'val/top1' in scalars else '')
    if stop.stopped:
        return None, curve
    sample = next(iter(runner.val_dataloader))
    image = runner.model.data_preprocessor(sample)['inputs'][:1]
    found = {name: round(value, 2) if isinstance(value, float) else value for name, value in accuracies(runner).items()}
    device = torch.cuda.get_device_name() if image.is_cuda else processor()
    return Row(**asdict(cost(runner.model, image)), **found, key=run.key, network=run.network, method=run.method_name,
               expand=run.expand_name, epochs=run.epochs, seed=run.seed, steps=runner.iter,
               minutes=round(runner.message_hub.get_info('minutes'), 2), device=device, threads=torch.get_num_threads(),
               torch=torch.__version__, bnn_plugins=__version__), curve


def accuracies(runner: Runner) -> dict[str, float | int | str]:
    """The columns of :class:`Row` that say how good a trained network is; the model is then the chosen one."""
    def measured(split: str) -> float:
        return evaluate(runner.model, runner.build_dataloader(runner.cfg[f'{split}_dataloader']))

    history = {name.removeprefix('val/'): buffer.data[0] for name, buffer in runner.message_hub.log_scalars.items()
               if name.startswith('val/top1')}
    found = dict(last_test_top1=measured('test'))
    if 'top1_fold0' in history:
        return found | dict(epoch=runner.epoch, train_top1=measured('train'), val_top1='', last_val_top1='',
                            test_top1=two_fold(history['top1_fold0'], history['top1_fold1']),
                            best_test_top1=float(history['top1'].max()))
    best = max(Path(runner.work_dir).glob('best_top1_epoch_*.pth'), key=lambda path: path.stat().st_mtime)
    load_checkpoint(runner.model, str(best), map_location='cpu')
    return found | dict(epoch=int(best.stem.rpartition('_')[2]), train_top1=measured('train'), val_top1=measured('val'),
                        test_top1=measured('test'), last_val_top1=float(history['top1'][-1]), best_test_top1='')


def two_fold(first: np.ndarray, second: np.ndarray) -> float:
    """Accuracy of the epoch that is best on one half of the images, measured on the other; the mean of both ways.

    Args:
        first, second: one accuracy for each validation, of each half.
    """
    return float(second[first.argmax()] + first[second.argmax()]) / 2


def work(name: str, grid: Config, root: Path, out: Path, state: Path, deadline: float) -> None:
    """Do what is left of the grid, run by run, until the time is over."""
    curves = out.with_name(f'{out.stem}_curves.csv')
    for run in runs(grid, name):
        with locked(root / run.key / 'lock') as mine:
            if not mine or any(row['key'] == run.key for row in read_rows(out)):
                continue
            restore_state(root / run.key, state / run.key)
            row = None
            if time.monotonic() < deadline:
                row, curve = train(run, grid, root / run.key, deadline)
                write_row(curves, curve, ['key'], lambda r: r['key'])
            if row is not None:
                write(out, row)
                print(f'{row.key}: test {row.test_top1}, last epoch {row.last_test_top1}, {row.minutes} minutes', flush=True)
            save_state(root / run.key, state / run.key, finished=row is not None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('grid', help='a name in benchmarks/accuracy/grids, or the path of a file')
    parser.add_argument('--work-dir', help='one folder per run; default work_dirs/accuracy/<grid>')
    parser.add_argument('--out', help='default benchmarks/accuracy/results/<grid>.csv')
    parser.add_argument('--state', help='where checkpoints of unfinished runs are copied to when the time is over, and work '
                        'dirs without any are filled from; default <grid>_unfinished beside --out')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='stop (to go on later) after that time')
    parser.add_argument('--workers', type=int, default=1, help='processes that share the runs')
    parser.add_argument('--threads', type=int, default=1, help='of torch, in each process')
    parser.add_argument('--list', action='store_true', help='list the runs, and whether they are done')
    args = parser.parse_args()

    grid, name = load_grid(args.grid), Path(args.grid).stem
    root = Path(args.work_dir or ROOT / 'work_dirs/accuracy' / name)
    out = Path(args.out or RESULTS / f'{name}.csv')
    state = Path(args.state or out.with_name(f'{name}_unfinished'))
    if args.list:
        done = {row['key'] for row in read_rows(out)}
        for run in runs(grid, name):
            newest = latest_checkpoint(root / run.key) or latest_checkpoint(state / run.key)
            epoch = 0 if newest is None else int(Path(newest).stem.rpartition('_')[2])
            print('done' if run.key in done else f'{epoch}/{run.epochs}', run.key)
        return
    flags = {'--work-dir': root, '--out': out, '--state': state, '--minutes': args.minutes, '--threads': args.threads}
    command = [sys.executable, '-m', 'benchmarks.accuracy.run', args.grid, *(str(x) for flag in flags.items() for x in flag)]
    helpers = [subprocess.Popen(command, cwd=ROOT) for _ in range(args.workers - 1)]
    torch.set_num_threads(args.threads)
    work(name, grid, root, out, state, time.monotonic() + 60 * args.minutes)
    failed = [helper.wait() for helper in helpers]  # all of them
    if any(failed):
        sys.exit('a worker failed, see above; run the same command again to go on')


if __name__ == '__main__':
    main()
