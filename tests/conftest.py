"""Every test starts from the same random state, and ``hypothesis`` neither times out nor writes a data base."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

import bnn_plugins  # noqa: F401  before mmdet, which needs mmcv._ext or its stand-in

# Compiled kernels name their source files: those of another checkout are other kernels.
os.environ.setdefault('TRITON_CACHE_DIR', str(Path(__file__).parents[1] / '.cache/triton/compiled'))

settings.register_profile('bnn_plugins', deadline=None, max_examples=25, database=None, derandomize=True)
settings.load_profile('bnn_plugins')


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
