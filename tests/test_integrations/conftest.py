"""A small digits set, and short runs of the real tools on it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CONFIG = 'configs/detection/retinanet_bnn-r18_fpn_digits.py'


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """48 training, 8 validation and 8 test canvases of 64x64."""
    from bnn_plugins.apps.digits import DigitsRecipe, make_digits
    recipe = DigitsRecipe(train=48, val=8, test=8, size=64, max_height=32, max_digits=3)
    return make_digits(tmp_path_factory.mktemp('digits'), recipe)


def on_digits(digits: Path, **overrides) -> dict:
    """``cfg_options`` that put a digits config on a small set: batch 8, 64x64, three epochs, a thin network."""
    options = {f'{split}_dataloader.dataset.data_root': str(digits) for split in ('train', 'val', 'test')}
    options.update({
        'train_dataloader.batch_size': 8, 'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3,
        'model.backbone.base_channels': 8, 'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 16,
        'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16,
        'default_hooks.logger.interval': 1, **overrides})
    return options


def as_arguments(options: dict) -> list[str]:
    """The same for ``--cfg-options``."""
    return [f'{key}={",".join(map(str, value)) if isinstance(value, list) else value}' for key, value in options.items()]


def tool(*arguments: str, launcher: tuple[str, ...] = (), path: str = '', **kwargs) -> subprocess.CompletedProcess:
    """Run a tool of the project as a user does, in a process of its own."""
    return subprocess.run(command(*arguments, launcher=launcher), cwd=REPOSITORY, env=environment(path), text=True,
                          capture_output=True, timeout=600, **kwargs)


def command(*arguments: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, *map(str, arguments)]


def environment(path: str = '') -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (path, os.environ.get('PYTHONPATH'))))
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': paths}
