"""Train, evaluate, pack and evaluate again: grids of detector configs, recipes and seeds, one CSV row per run.

Rows that are there are left alone, finished trainings are not repeated, interrupted ones resume: ``python -m
benchmarks.detection.run raccoon``.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from bnn_plugins.analysis import processor
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import latest_checkpoint, load_config, test, train
from bnn_plugins.integrations.mmengine.summarize import summarize_config

from ..rows import read_rows, write_row
from .grids import GRIDS, Entry, Grid

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / 'results'
KEYS = ('config', 'recipes', 'seed', 'epochs')


@dataclass
class Row:
    """One run.

    Attributes:
        config, recipes: names of files in ``configs/detection`` and ``configs/_base_/recipes``.
        val_map50, test_map50: of the last checkpoint, in [0, 1]; no checkpoint was selected on either split.
        packed_map50: of the packed file on the test split; '' for a float model.
        mops: 1e6 operations of one test image, FLOPs + BOPs / 64.
        bytes_float, bytes_packed: of all parameters and buffers; of the file.
        minutes: of the training iterations, without evaluation, waiting for other processes included; cpu_minutes: of the
            processor, which other processes hardly change. threads: of torch in training.
    """

    config: str
    recipes: str
    method: str
    seed: int
    epochs: int
    val_map50: float
    test_map50: float
    packed_map50: float | str
    mops: float | str
    bytes_float: int
    bytes_packed: int | str
    minutes: float
    cpu_minutes: float | str
    threads: int
    processor: str
    torch: str
    mmdet: str
    bnn_plugins: str


@HOOKS.register_module()
class ProcessorTimeHook(Hook):
    """Processor time of each iteration, in the checkpoint's scalars."""

    priority = 'LOWEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.start = time.process_time()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        runner.message_hub.update_scalar('train/cpu', time.process_time() - self.start)


def map50(metrics: dict[str, float]) -> float:
    """mAP@0.5 of mmdet's VOC or COCO metric."""
    return metrics['pascal_voc/mAP'] if 'pascal_voc/mAP' in metrics else metrics['coco/bbox_mAP_50']


def scheduled(cfg, epochs: int) -> dict:
    """Options that make the training, with all of its steps, ``epochs`` long."""
    steps = cfg.get('steps') or ()
    prefixes = [f'steps.{number}.' for number in range(len(steps))] or ['']
    options = {}
    for number, prefix in enumerate(prefixes):
        length = epochs // len(prefixes) + (number < epochs % len(prefixes))
        options |= {f'{prefix}train_cfg.max_epochs': length, f'{prefix}train_cfg.val_interval': length,
                    f'{prefix}param_scheduler.1.T_max': length}
    return options


def write_config(entry: Entry, seed: int, epochs: int | None, work_dir: Path, text: str) -> Path:
    """A config of the recipes on top of the entry's, with the float detector of the same seed as ``float_twin``."""
    bases = [f'configs/detection/{entry.config}.py', *(f'configs/_base_/recipes/{name}.py' for name in entry.recipes)]
    text = f'_base_ = {[str(ROOT / base) for base in bases]}\n{text}'
    if entry.twin:
        twin = folder(work_dir, Entry(entry.twin), seed, epochs).resolve()
        text += f'float_twin = {dict(config=str(twin / "config.py"), checkpoint=latest_checkpoint(twin))}\n'
    path = folder(work_dir, entry, seed, epochs) / 'config.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def folder(work_dir: Path, entry: Entry, seed: int, epochs: int | None) -> Path:
    return work_dir / '-'.join([entry.config, *entry.recipes, *([str(epochs * entry.times)] if epochs else []),
                                str(seed)])


def run(entry: Entry, seed: int, work_dir: Path, threads: int, epochs: int | None = None, text: str = '') -> Row:
    """Train (or resume, or skip) and evaluate one entry with one seed; ``epochs``: another length than the config's;
    ``text``: more lines of it."""
    torch.set_num_threads(threads)
    config = str(write_config(entry, seed, epochs, work_dir, text))
    work_dir = folder(work_dir, entry, seed, epochs)
    options = {'randomness.seed': seed, 'default_hooks.cpu': dict(type='ProcessorTimeHook')}
    length = epochs * entry.times if epochs else None
    if length:
        options |= scheduled(load_config(config), length)
    cfg = load_config(config, cfg_options=options)
    folders = [work_dir / f'step{number + 1}' for number in range(len(cfg.get('steps') or ()))] or [work_dir]
    lengths = [step.train_cfg.max_epochs for step in cfg.get('steps') or ()] or [cfg.train_cfg.max_epochs]
    checkpoints = [path / f'epoch_{count}.pth' for path, count in zip(folders, lengths, strict=True)]
    if not checkpoints[-1].exists():
        train(config, str(work_dir), resume='auto', cfg_options=options)
    minutes, cpu = (total(checkpoints, name) for name in ('train/time', 'train/cpu'))
    checkpoint, method = str(checkpoints[-1]), cfg.get('method', 'float')
    validate = {'test_dataloader': cfg.val_dataloader}
    val = map50(test(config, checkpoint, str(work_dir / 'val'), cfg_options=validate))
    latent = map50(test(config, checkpoint, str(work_dir / 'test')))
    packed, size = '', ''
    if method != 'float':
        file = pack_checkpoint(config, checkpoint, str(work_dir / 'packed.safetensors'))
        packed, size = map50(test(config, str(file), str(work_dir / 'packed'))), file.stat().st_size
    weights = sum(value.nbytes for value in read(checkpoint)['state_dict'].values())
    method = method if isinstance(method, str) else method['type']
    return Row(entry.config, '+'.join(entry.recipes), method, seed, sum(lengths), val, latent, packed, mops(cfg), weights,
               size, minutes, cpu, threads, processor(), torch.__version__, version('onedl-mmdetection'),
               version('bnn_plugins'))


def mops(cfg) -> float:
    """Of an image as large as the test pipeline makes it."""
    scale = next(step['scale'] for step in cfg.test_dataloader.dataset.pipeline if 'scale' in step)
    return round(summarize_config(cfg, scale[::-1])[1].totals.ops / 1e6, 1)


def total(checkpoints: list[Path], name: str) -> float | str:
    """Minutes that a scalar, in seconds, adds up to in all steps; '' where it was not kept in each iteration."""
    scalars = [read(path)['message_hub']['log_scalars'] for path in checkpoints]
    if any(name not in each or len(each[name].data[0]) < len(each['train/time'].data[0]) for each in scalars):
        return ''
    return round(sum(sum(each[name].data[0]) for each in scalars) / 60, 1)


def read(checkpoint: str | Path) -> dict:
    return torch.load(checkpoint, map_location='cpu', weights_only=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('grid', nargs='?', default='bccd', choices=GRIDS, help='see grids.py')
    parser.add_argument('--configs', nargs='+', help='names in configs/detection, instead of the entries of the grid')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    parser.add_argument('--work-dir', help='default work_dirs/<grid>: one folder per run')
    parser.add_argument('--out', help='default results/<grid>.csv')
    parser.add_argument('--epochs', type=int, help='default: those of the grid')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()

    grid = GRIDS[args.grid]
    if args.configs:
        grid = Grid(tuple(Entry(Path(name).stem) for name in args.configs))
    out = Path(args.out or RESULTS / f'{args.grid}.csv')
    for seed in args.seeds:
        for entry in grid.entries:
            length = args.epochs or grid.epochs
            names = entry.config, '+'.join(entry.recipes), str(seed), *([str(length * entry.times)] if length else [])
            if any(names == tuple(row[key] for key in KEYS[:len(names)]) for row in read_rows(out)):
                continue
            row = run(entry, seed, Path(args.work_dir or f'work_dirs/{args.grid}'), args.threads, length,
                      grid.text)
            write_row(out, asdict(row), KEYS, lambda r: (r['config'], r['recipes'], int(r['epochs']), int(r['seed'])))
            print(f'{row.config} {row.recipes} seed {seed}: test mAP@0.5 {row.test_map50}, packed {row.packed_map50}')


if __name__ == '__main__':
    main()
