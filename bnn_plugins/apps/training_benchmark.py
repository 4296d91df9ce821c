"""What training the model of a config costs beside its float twin: ``tools/benchmark.py --train``."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from rich.console import Console
from torch import nn

from ..analysis.machine import machine_facts
from ..analysis.throughput_run import write_csv
from ..analysis.training_profile import KINDS, PHASES, Training, TrainingRow, TrainingVariant, profile_training
from ..convert.tables import report_table
from ..integrations.mmengine import benchmark as throughput
from ..integrations.mmengine.pack import build_model
from ..integrations.mmengine.run import load_config
from ..integrations.mmengine.summarize import MIN_WIDTH

BOXES = 8  # on each random image for a detector


def endless(loader) -> Iterator:
    while True:
        yield from loader


# --- classifiers and detectors of mmengine ---------------------------------------------------------------------------------

def runner_training(cfg: Config, batch: int | None, size: tuple[int, int] | None, device: torch.device) -> Training:
    """Of a config for mmengine's Runner, on its training images; random ones where these are not there, and for a ``size``."""
    loader = dict(cfg.train_dataloader, num_workers=0, persistent_workers=False, drop_last=True)
    loader['batch_size'] = batch = batch or loader['batch_size']
    model = build_model(cfg)
    model.init_weights()
    model.to(device).train()
    try:
        batches = None if size else endless(Runner.build_dataloader(loader, seed=0))
    except FileNotFoundError:
        batches = None
    noise = None if batches else random_batch(cfg, model, batch, size or throughput.default_size(cfg))

    def next_batch() -> dict:
        return model.data_preprocessor(copy.deepcopy(noise) if batches is None else next(batches), True)

    def loss(model: nn.Module, data: dict) -> torch.Tensor:
        return model.parse_losses(model(**data, mode='loss'))[0]
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    return Training(model, optimizer, next_batch, loss, model.backbone)


def random_batch(cfg: Config, model: nn.Module, batch: int, size: tuple[int, int]) -> dict:
    """What a loader would give: images ``uint8`` and labels or boxes, the same each time."""
    generator = torch.Generator().manual_seed(0)
    if cfg.get('default_scope', 'mmdet') != 'mmdet':
        channels = next(module for module in model.modules() if isinstance(module, nn.Conv2d)).in_channels
        images = torch.randint(0, 256, (batch, channels, *size), dtype=torch.uint8, generator=generator)
        return dict(inputs=[images], labels=[torch.randint(cfg.model.head.num_classes, (batch,), generator=generator)])
    from mmengine.structures import InstanceData
    throughput.check_size(cfg, size)
    samples = throughput.image_samples(cfg, batch, size)[0]
    for sample in samples:
        corners = torch.rand(BOXES, 2, generator=generator) * torch.tensor(size[::-1]) * 0.75
        sides = torch.rand(BOXES, 2, generator=generator) * torch.tensor(size[::-1]) * 0.2 + 4
        labels = torch.randint(cfg.model.bbox_head.num_classes, (BOXES,), generator=generator)
        sample['data_samples'].gt_instances = InstanceData(bboxes=torch.cat([corners, corners + sides], 1), labels=labels)
    return pseudo_collate(samples)


# --- UNets of diffusers ----------------------------------------------------------------------------------------------------

class ClippedOptimizer:
    """An optimizer of the trainer of diffusion models, with the clipping of gradients before its step."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.zero_grad = trainer.optimizer.zero_grad

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.trainer.unet.parameters(), self.trainer.args.max_grad_norm)
        self.trainer.optimizer.step()


def diffusion_training(config: str, options: Mapping, batch: int | None, size: tuple[int, int] | None,
                       is_twin: bool) -> Training:
    """Of a config for ``tools/train_diffusion.py``: its loss without the distillation, its optimizer."""
    from .diffusion.flags import parse_args
    from .diffusion.train import Trainer
    args = parse_args([config])
    sections = Config(dict(model=args.model, train={}))
    sections.merge_from_dict(dict(options))
    model = sections.model.to_dict()
    args.model = float_unet(model) if is_twin else model
    for name, value in {**sections.train, 'teacher_model': None, 'teacher_weight': 0.0, 'spd_weight': 0.0, 'lrm_weight': 0.0,
                        'logger': 'none', 'use_ema': False, 'output_dir': 'work_dirs/training_benchmark'}.items():
        setattr(args, name, value)
    args.train_batch_size = batch or args.train_batch_size
    if size is not None:
        args.resolution = args.model['sample_size'] = size[0]
    trainer = Trainer(args)
    trainer.unet.train()
    batches = endless(trainer.loader)
    return Training(trainer.unet, ClippedOptimizer(trainer), lambda: next(batches), lambda _, batch: trainer.loss(batch),
                    trainer.unet)


def float_unet(model: dict) -> dict:
    """The config of the float twin of a ``BinaryUNet2DModel``: diffusers' own blocks, nothing binary."""
    kept = {key: value for key, value in model.items()
            if key not in ('method', 'pad_value', 'expand', 'time_buckets', 'cross_timestep', 'block_methods')}

    def plain(value: object) -> object:
        return type(value)(plain(item) for item in value) if isinstance(value, list | tuple) else (
            value.removeprefix('Binary') if isinstance(value, str) else value)
    return {key: plain(value) if key == 'type' or 'block_type' in key else value for key, value in kept.items()}


# --- the benchmark ---------------------------------------------------------------------------------------------------------

def train_benchmark(config: str, variants: Mapping[str, Mapping] | None = None, batch: int | None = None,
                    size: tuple[int, int] | None = None, threads: int = 1, device: str = 'cpu', rounds: int = 15,
                    budget: float = 60.0, compiled: bool = False, float_config: str | None = None,
                    cfg_options: Mapping | None = None, gradients: Sequence[str] = ('float32',)) -> list[TrainingRow]:
    """Measure training steps of the binary model of ``config`` and of its float twin, side by side.

    Args:
        config: of a classifier or detector of mmengine, or of a diffusion model.
        variants: several binary models instead of one: name -> overrides of the config.
        batch, size: default those of the config's training; a size (height, width) means random images.
        threads: of torch.
        device: ``'cpu'`` or ``'cuda'``.
        rounds, budget: see :func:`bnn_plugins.analysis.training_profile.profile_training`.
        compiled: measure the twin with ``torch.compile``, too.
        float_config: config of the float twin, where it cannot be derived.
        cfg_options: overrides of both.
        gradients: of binary layers, ``'float32'``, ``'bfloat16'`` or both: each model is measured with each.

    Raises:
        FileNotFoundError: without the config. ValueError: where no float twin is known.
    """
    MMLogger.get_instance('mmengine', log_level='WARNING')
    options, place = dict(cfg_options or {}), torch.device(device)
    diffusion = 'noise_scheduler' in load_config(config)

    def make(overrides: Mapping, is_twin: bool) -> Training:
        torch.manual_seed(0)
        source, changes = float_config if is_twin and float_config else config, {**options, **overrides}
        if diffusion:
            return diffusion_training(source, changes, batch, size, is_twin)
        cfg = load_config(source, cfg_options=changes)
        if is_twin and not float_config:
            cfg.model = throughput.float_config(cfg.model.to_dict())
        return runner_training(cfg, batch, size, place)

    twin = make({}, True)
    found = [TrainingVariant('float32', twin), TrainingVariant('bfloat16', twin, torch.bfloat16)]
    if compiled:
        found.append(TrainingVariant('float32-compiled', make({}, True), compiled=True))
    for name, overrides in (variants or {'binary': {}}).items():
        binary = make(overrides, False)
        found += [TrainingVariant(name, binary) if dtype == 'float32' else
                  TrainingVariant(f'{name}, {dtype} gradients', binary, gradients=dtype) for dtype in gradients]
    return profile_training(Path(config).stem, found, threads, rounds, budget)


def print_training(rows: list[TrainingRow], console: Console) -> None:
    """One line per variant: shares of the phases and of the kinds of layers in percent of the step, data beside it."""
    def cells(row: TrainingRow) -> list[str]:
        values = row.line()

        def share(*names: str) -> str:
            return f'{100 * sum(values[f"{name}_ms"] for name in names) / row.step_ms:.0f} %'
        memory = row.saved_bytes, row.peak_bytes, row.resident_bytes
        parts = [*map(share, PHASES), *(share(f'{kind}_forward', f'{kind}_backward') for kind in KINDS)]
        return [row.variant, row.path, f'{row.step_ms:.1f}', f'{row.q1_ms:.1f} - {row.q3_ms:.1f}',
                f'{row.of_float32:.2f}', f'{row.of_bfloat16:.2f}', *parts,
                *('' if count == '' else f'{count / 1e6:.1f}' for count in memory)]
    one = rows[0]
    title = f'{one.config}, batch {one.batch}, {one.height}x{one.width}, {one.threads} thread(s), {one.clock}'
    columns = ('variant', 'path', 'step ms', 'quartiles', 'of f32', 'of bf16', *PHASES[:3], 'optim', *KINDS[:3], 'act',
               'other', 'saved MB', 'peak MB', 'rss MB')
    console.print(report_table(title, columns, map(cells, rows), right=columns[2:], no_wrap=True))


def write_training(rows: list[TrainingRow], path: str | Path) -> Path:
    """One line per variant, with the machine."""
    machine = machine_facts()
    lines = [{**row.line(), **machine} for row in rows]
    return write_csv(path, list(lines[0]), lines)


def benchmark_training(config: str, out: str | None = None, batch: Sequence[int] | None = None,
                       size: Sequence[tuple[int, int]] = (), threads: Sequence[int] = (1,), **options) -> list[TrainingRow]:
    """:func:`train_benchmark` of every combination, printed, and written to ``out/training.csv``."""
    rows = []
    for count, one_size, one_batch in product(threads, size or (None,), batch or (None,)):
        rows.append(train_benchmark(config, batch=one_batch, size=one_size, threads=count, **options))
        print_training(rows[-1], Console(width=max(Console().width, MIN_WIDTH)))
    rows = [row for case in rows for row in case]
    if out is not None:
        print(f'{write_training(rows, Path(out) / "training.csv")} written')
    return rows
