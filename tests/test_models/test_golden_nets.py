"""Networks of the configs against logits of the papers' released networks, filled by rule (tests/golden/networks)."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

from bnn_plugins.registry import MODELS

REPOSITORY = Path(__file__).parents[2]
NETWORKS = sorted((REPOSITORY / 'tests/golden/networks').glob('*.json'))


def filled(data: dict, negative_gamma: bool) -> dict:
    """The official state dict of ``data``: each tensor drawn from a generator that its key seeds."""
    state = {}
    for key, shape, dtype in data['state_dict']:
        rng = np.random.default_rng(zlib.crc32(key.encode()))
        _, rule, *args = next(entry for entry in data['fill']['rules'] if re.search(entry[0], key))
        if rule in ('uniform', 'signed'):
            values = rng.uniform(*args, shape)
        elif rule == 'constant':
            values = np.full(shape, float(args[0]))
        else:
            values = rng.standard_normal(shape)
        scale = args[0] if rule == 'normal' else np.sqrt(2 / np.prod(shape[1:])) if rule == 'fan_in' else 1
        values = np.asarray(values * scale)
        if rule == 'orthogonal':
            q, r = np.linalg.qr(values)
            values = q * np.sign(np.diag(r))
        if rule == 'signed' or (negative_gamma and re.search(data['fill']['negative_gamma'], key)):
            values.reshape(-1)[::3] *= -1
        state[key] = torch.from_numpy(values.astype(dtype))
    return state


def mapped(data: dict, state: dict, own: dict) -> dict:
    """``state`` under the names, and in the shapes, of the network whose state dict is ``own``."""
    out = {}
    for key, value in state.items():
        match, targets = next((match, targets) for pattern, targets, _ in data['mapping']['rules']
                              if (match := re.fullmatch(pattern, key)))
        names = match.groupdict()
        if 's' in names:
            names['stage'] = int(names['s']) - 1
        for target in targets:
            name = target.format(**names)
            assert value.numel() == own[name].numel(), name
            out[name] = value.reshape(own[name].shape)
    return out


@pytest.mark.parametrize('logits', ['logits', 'logits_negative_gamma'])
@pytest.mark.parametrize('path', NETWORKS, ids=lambda path: path.stem)
def test_the_network_of_the_config_is_the_published_one(path, logits):
    data = json.loads(path.read_text())
    cfg = Config.fromfile(REPOSITORY / data['mapping']['config'])
    model = MODELS.build(cfg.model)
    state = filled(data, logits == 'logits_negative_gamma')
    model.load_state_dict(mapped(data, state, model.state_dict()), strict=True)
    model.double().eval()
    images = np.random.default_rng(0).standard_normal(data['input']['shape']).astype(np.float32)
    with torch.no_grad():
        out = model.head(model.backbone(torch.from_numpy(images).double()))
    expected = torch.tensor(data[logits]['all'], dtype=torch.float64)
    assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()
