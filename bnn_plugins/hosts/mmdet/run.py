"""The mmengine ``Runner`` behind ``tools/train.py`` and ``tools/test.py``, with mmdet's flags."""

import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import bnn_kernels

from ...deploy import load_packed_


def load_config(config: str, work_dir: str | None = None, cfg_options: dict | None = None, launcher: str = 'none') -> Config:
    """The config of a file, or of a name like ``mmdet::retinanet/...``, with overrides.

    ``work_dir`` is, in this order, the argument, the file's, or ``work_dirs/<name of the file>``.

    Raises:
        FileNotFoundError: when the config does not exist.
    """
    if '::' not in config and not Path(config).is_file():
        raise FileNotFoundError(f'the config {config!r} does not exist: give a path, or a name like mmdet::retinanet/...')
    cfg = get_config(config) if '::' in config else Config.fromfile(config)
    cfg.launcher = launcher
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(config).stem)
    return cfg


def train(config: str, work_dir: str | None = None, resume: str | None = None, amp: bool = False, auto_scale_lr: bool = False,
          cfg_options: dict | None = None, launcher: str = 'none') -> Runner:
    """Train; the arguments are the flags of mmdet's ``tools/train.py``.

    Args:
        resume: ``'auto'`` for the newest checkpoint in ``work_dir``, or the path of one.

    Raises:
        ValueError: ``auto_scale_lr`` without ``auto_scale_lr.base_batch_size`` in the config.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
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
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    runner = build_runner(cfg)
    runner.train()
    return runner


def test(config: str, checkpoint: str, work_dir: str | None = None, out: str | None = None, show: bool = False,
         show_dir: str | None = None, wait_time: float = 2, cfg_options: dict | None = None, launcher: str = 'none') -> dict:
    """Evaluate a checkpoint or a packed file; the arguments are the flags of mmdet's ``tools/test.py``.

    Returns:
        the metrics, ``{'coco/bbox_mAP_50': ..., ...}``.

    Raises:
        FileNotFoundError: when the config or the checkpoint does not exist. ValueError: when a packed file is damaged or for
            another config.
    """
    cfg = load_config(config, work_dir, cfg_options, launcher)
    packed = checkpoint.endswith('.safetensors')
    cfg.load_from = None if packed else checkpoint
    if show or show_dir:
        hook = cfg.default_hooks.setdefault('visualization', dict(type='DetVisualizationHook'))
        hook.update(draw=True, show=show, wait_time=wait_time, test_out_dir=show_dir)
    if out:
        cfg.test_evaluator = [cfg.test_evaluator] if isinstance(cfg.test_evaluator, dict) else list(cfg.test_evaluator)
        cfg.test_evaluator.append(dict(type='DumpDetResults', out_file_path=out))
    runner = build_runner(cfg)
    if packed:
        # Checks more than mmengine's loading does: the file and the model must have the same layers.
        load_packed_(runner.model.module if is_model_wrapper(runner.model) else runner.model, checkpoint)
    metrics = runner.test()
    if packed:
        print_log(f'packed layers ran on the backend {bnn_kernels.last_backend()!r}', logger='current')
    return metrics


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, ready for several processes with or without GPUs."""
    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        # mmengine's init_dist and its default wrapper both insist on a GPU.
        torch.distributed.init_process_group('gloo')
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                     find_unused_parameters=cfg.get('find_unused_parameters', False))
        print_log(f'no GPU: gloo on {os.environ["WORLD_SIZE"]} processes', logger='current')
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
