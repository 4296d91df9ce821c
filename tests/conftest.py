"""Every test starts from the same random state and without another one's registry scope, so that they may run in any order;
``hypothesis`` neither times out nor writes a data base."""

import os
import random
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import bnn_plugins  # noqa: F401  before mmdet, which needs mmcv._ext or its stand-in

ROOT = Path(__file__).parents[1]
# Subprocesses import this checkout as well, whatever is installed and wherever they start.
os.environ['PYTHONPATH'] = os.pathsep.join(
    dict.fromkeys(filter(None, (f'{ROOT / "kernels"}', f'{ROOT}', *os.environ.get('PYTHONPATH', '').split(os.pathsep)))))
# Compiled kernels name their source files: those of another checkout are other kernels.
os.environ.setdefault('TRITON_CACHE_DIR', str(ROOT / '.cache/triton/compiled'))

settings.register_profile('bnn_plugins', deadline=None, max_examples=25, database=None, derandomize=True)
settings.load_profile('bnn_plugins')


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=['engine', 'torch'])
def rules(request, monkeypatch):
    """Rules on lists of tensors run in the engine, if it is there, and by torch's operators."""
    if request.param == 'torch':
        monkeypatch.setattr('bnn_kernels.updates.available', lambda: False)


def global_instances() -> list[type]:
    """Classes of mmengine whose instances a Runner leaves behind, to be found by their names."""
    kinds = []
    if 'mmengine.registry' in sys.modules:
        kinds.append(sys.modules['mmengine.registry'].DefaultScope)
    if 'mmengine.visualization' in sys.modules:
        kinds.append(sys.modules['mmengine.visualization'].Visualizer)
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


@pytest.fixture(autouse=True)
def scope():
    """The next test would look for types without a prefix in the scope of this one, and draw into its folder."""
    before = {kind: kind._instance_dict.copy() for kind in global_instances()}
    yield
    for kind in global_instances():
        kind._instance_dict = before.get(kind, OrderedDict())
