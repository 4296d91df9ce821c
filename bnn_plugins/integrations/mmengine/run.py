"""The mmengine ``Runner`` behind ``tools/train.py`` and ``tools/test.py``, with mmdet's flags."""

import copy
import itertools
import logging
import re
import zipfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, load_checkpoint
from torch import nn

import bnn_kernels

from ...binarize import follows_training
from ...deploy import fuse_, load_packed_
from ...engine import BinaryTrainingHook, ResumeHook, UnreadableImagesHook
from ...engine.processes import from_first, share_file
from .launch import distribute_, join_processes
from .recipes import apply_recipes_, spell_out_

EXPERIMENTS = itertools.count(1)
CHECKPOINT = re.compile(r'(best_.+_)?(epoch|iter)_\d+\.pth')


def read_config(config: str) -> Config:
    """The config of a file, or of a name like ``bnn_plugins::detection/...`` or ``mmdet::retinanet/...``.

    Raises:
        FileNotFoundError: when the config does not exist.
    """
    if '::' in config:
        return get_config(config)
    if not Path(config).is_file():
        raise FileNotFoundError(f'the config {config!r} does not exist: give a path, or a name like '
                                'bnn_plugins::detection/... or mmdet::retinanet/...')
    return Config.fromfile(config)


def load_config(config: str, work_dir: str | None = None, cfg_options: dict | None = None, launcher: str = 'none') -> Config:
    """:func:`read_config` with overrides and the config's recipes, see :func:`.apply_recipes_`.

    ``work_dir`` is, in this order, the argument, the file's, or ``work_dirs/<name of the file>``.
    """
    cfg = read_config(config)
    cfg.launcher = launcher
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    apply_recipes_(cfg)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config).stem)
    return cfg


def train(config: str, work_dir: str | None = None, resume: str | None = None, amp: bool = False, auto_scale_lr: bool = False,
          cfg_options: dict | None = None, launcher: str = 'none') -> Runner:
    """Train; the arguments are the flags of mmdet's ``tools/train.py``.

    A config with ``steps`` is trained in several, see :func:`train_steps`.

    Args:
        resume: ``'auto'`` for the newest checkpoint in ``work_dir``, or the path of one.

    Raises:
        ValueError: ``auto_scale_lr`` without ``auto_scale_lr.base_batch_size`` in the config.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
    join_processes(cfg)
    if cfg.get('steps'):
        return train_steps(cfg, resume, amp, auto_scale_lr)
    return train_config(cfg, resume, amp, auto_scale_lr)


def train_steps(cfg: Config, resume: str | None, amp: bool, auto_scale_lr: bool) -> Runner:
    """Train one step after the other, each from the last checkpoint of the one before it.

    ``steps`` in a config is a list of overrides, one for each step; step k has the folder ``work_dir/step{k}``.
    ``resume='auto'`` goes on where the training stopped, in whichever step.

    Raises:
        ValueError: when ``resume`` is a path: it belongs to one of the steps.
    """
    if resume not in (None, 'auto'):
        raise ValueError('a config with steps resumes by itself: use --resume without a path')
    before = None
    for number, overrides in enumerate(cfg.pop('steps'), start=1):
        step = copy.deepcopy(cfg)
        spell_out_(step, overrides)
        step.merge_from_dict(overrides)
        step.work_dir = str(Path(cfg.work_dir) / f'step{number}')
        started = resume is not None and from_first(lambda folder=step.work_dir: latest_checkpoint(folder)) is not None
        if before is not None and not started:
            step.load_from = before
        print_log(f'step {number}: {step.work_dir}', logger='current')
        runner = train_config(step, 'auto' if started else None, amp, auto_scale_lr)
        before = from_first(lambda folder=step.work_dir: latest_checkpoint(folder))
    return runner


def train_config(cfg: Config, resume: str | None, amp: bool, auto_scale_lr: bool) -> Runner:
    """Train what a loaded config says; see :func:`train`."""
    if amp:
        if torch.cuda.is_available():
            cfg.optim_wrapper.type = 'AmpOptimWrapper'
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        else:
            cfg.optim_wrapper.type = 'bnn_plugins.BFloat16OptimWrapper'
    if auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config')
        cfg.auto_scale_lr.enable = True
        # mmengine counts the images of a batch, not those of an optimizer step.
        cfg.auto_scale_lr.base_batch_size /= cfg.optim_wrapper.get('accumulative_counts', 1)
    if resume is not None:
        newest = from_first(lambda: latest_checkpoint(cfg.work_dir)) if resume == 'auto' else resume
        cfg.resume, cfg.load_from = newest is not None, newest or cfg.get('load_from')
    runner = build_runner(cfg)
    runner.register_hook(UnreadableImagesHook())
    built = isinstance(runner.model, nn.Module)  # FlexibleRunner builds it later
    if built and follows_training(runner.model) and not any(isinstance(hook, BinaryTrainingHook) for hook in runner.hooks):
        print_log("the config has no BinaryTrainingHook: the schedules, rotations and clipping of latents of its method never "
                  "run. Add custom_hooks=[dict(type='bnn_plugins.BinaryTrainingHook')]", logger='current',
                  level=logging.WARNING)
    runner.train()
    return runner


def test(config: str, checkpoint: str, work_dir: str | None = None, out: str | None = None, show: bool = False,
         show_dir: str | None = None, wait_time: float = 2, cfg_options: dict | None = None, launcher: str = 'none',
         fuse: bool = True, tta: bool = False) -> dict:
    """Evaluate a checkpoint or a packed file; the arguments are the flags of mmdet's ``tools/test.py``.

    Args:
        fuse: run a packed file as fused blocks (:func:`bnn_plugins.fuse_`); without, layer by layer, in the order of the
            latent model's floating point operations.
        tta: augment each image, as ``tta_model`` and ``tta_pipeline`` of the config say, by default with its mirror image.

    Returns:
        the metrics, ``{'coco/bbox_mAP_50': ..., ...}``.

    Raises:
        FileNotFoundError: when the config or the checkpoint does not exist. ValueError: when a packed file is damaged or for
            another config.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
    join_processes(cfg)
    packed = checkpoint.endswith('.safetensors')
    cfg.load_from = None if packed or tta else checkpoint
    if tta:
        augment_test_(cfg)
    if show or show_dir:
        if cfg.get('default_scope', 'mmdet') != 'mmdet':
            raise ValueError('--show and --show-dir paint boxes: they are for detectors')
        hook = cfg.default_hooks.setdefault('visualization', dict(type='DetVisualizationHook'))
        hook.update(draw=True, show=show, wait_time=wait_time, test_out_dir=show_dir)
    if out:
        cfg.test_evaluator = [cfg.test_evaluator] if isinstance(cfg.test_evaluator, dict) else list(cfg.test_evaluator)
        kind = 'DumpDetResults' if cfg.get('default_scope', 'mmdet') == 'mmdet' else 'DumpResults'
        cfg.test_evaluator.append(dict(type=kind, out_file_path=out))
    runner = build_runner(cfg)
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    model = model.module if tta else model
    if tta and not packed:
        load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    if packed:
        # Checks more than mmengine's loading does: the file and the model must have the same layers.
        load_packed_(model, checkpoint)
        if fuse:
            print_log(fuse_(model).summary(), logger='current')
    metrics = runner.test()
    if packed:
        print_log(f'packed layers ran on the backend {bnn_kernels.last_backend()!r}', logger='current')
    return metrics


def augment_test_(cfg: Config) -> None:
    """Put the model of ``cfg`` into mmdet's model for augmented images, and the augmentation into the test pipeline."""
    dataset = cfg.test_dataloader.dataset
    while 'pipeline' not in dataset:
        dataset = dataset.dataset
    *steps, pack = copy.deepcopy(dataset.pipeline)
    pack['meta_keys'] = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction')
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
    dataset.pipeline = cfg.get('tta_pipeline') or [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]
    wrapper = cfg.get('tta_model') or dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5),
                                                                            max_per_img=100))
    cfg.model = dict(wrapper, module=cfg.model)


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a work dir, the one that ``last_checkpoint`` names if it is whole; ``None`` without one.

    mmengine's own search believes ``last_checkpoint``. A training that is killed while that file or a checkpoint is written
    leaves it empty or cut off, and could then not be resumed. A whole checkpoint is a zip archive, whose index is at its end.
    """
    folder = Path(work_dir)
    last = folder / 'last_checkpoint'
    named = [Path(last.read_text().strip())] if last.is_file() else []
    others = [path for path in folder.glob('*.pth') if CHECKPOINT.fullmatch(path.name)]
    others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return next((str(path) for path in [*named, *others] if path.is_file() and zipfile.is_zipfile(path)), None)


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, ready for several processes with or without GPUs."""
    cfg = copy.deepcopy(cfg)
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = from_first(lambda: latest_checkpoint(cfg.work_dir))
        cfg.resume = cfg.load_from is not None
    share_file(cfg.get('load_from'))
    distribute_(cfg)
    # mmengine tells experiments apart by the second in which they start. Two in one process and one second would share their
    # message hub, and the later one would save no checkpoint until it beats the best score of the earlier one.
    name = cfg.get('experiment_name') or Path(cfg.filename or 'experiment').stem
    cfg.experiment_name = f'{name}_{next(EXPERIMENTS)}'
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.register_hook(ResumeHook())
    return runner
