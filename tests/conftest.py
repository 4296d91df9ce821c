"""Every test starts from the same random state, and ``hypothesis`` neither times out nor writes a data base."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

import bnn_plugins  # noqa: F401  before mmdet, which needs mmcv._ext or its stand-in

settings.register_profile('bnn_plugins', deadline=None, max_examples=25, database=None, derandomize=True)
settings.load_profile('bnn_plugins')


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
