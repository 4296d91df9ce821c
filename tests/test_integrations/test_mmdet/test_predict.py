"""Detections for a folder of pictures, in files that an interrupted run goes on with."""

import json

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from bnn_plugins import pack_, save_packed, zoo
from bnn_plugins.integrations.mmdet.predict import lines, predict

from ..conftest import CONFIG, REPOSITORY


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """A config, a packed file of it and a folder of four pictures, one of them damaged."""
    folder = tmp_path_factory.mktemp('predict')
    config = folder / 'config.py'
    config.write_text(f"_base_ = '{REPOSITORY / CONFIG}'\nmodel = dict(backbone=dict(base_channels=8), neck=dict(in_channels="
                      '[8, 16, 32, 64], out_channels=16), bbox_head=dict(in_channels=16, feat_channels=16))\n')
    cfg = Config.fromfile(str(config))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    packed = save_packed(pack_(MODELS.build(cfg.model)), folder / 'packed.safetensors')
    (folder / 'pictures/deep').mkdir(parents=True)
    for index in range(3):
        picture = np.random.default_rng(index).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f'pictures/deep/{index}.png')
    (folder / 'pictures/damaged.png').write_bytes(b'no picture')
    return str(config), str(packed), str(folder / 'pictures')


def found(out) -> dict:
    every = [line for path in out.glob('*.jsonl') for line in lines(path)]
    assert len({line['file'] for line in every}) == len(every), 'no picture twice'
    return {line.pop('file'): line for line in every}


def test_an_interrupted_run_goes_on(files, tmp_path):
    """Killed in the middle of a line. Mutation: the rest of the line stays, or all pictures are taken again."""
    assert predict(*files, str(tmp_path / 'whole'), score=0.0) == 4
    whole = found(tmp_path / 'whole')
    assert set(whole) == {'damaged.png', 'deep/0.png', 'deep/1.png', 'deep/2.png'}
    assert 'error' in whole['damaged.png']
    assert len(whole['deep/0.png']['boxes']) == len(whole['deep/0.png']['scores']) > 0
    part = tmp_path / 'part/predictions-3.jsonl'
    part.parent.mkdir()
    first = json.dumps(dict(file='deep/1.png', **whole['deep/1.png']))
    part.write_text(f'{first}\n{{"file": "deep/2.p')
    assert predict(*files, str(tmp_path / 'part'), score=0.0) == 3
    assert found(tmp_path / 'part') == whole
    assert predict(*files, str(tmp_path / 'part')) == 0


def test_a_config_by_name(files, tmp_path):
    """Mutation: hand the name to mmdet, which looks for a file of that name."""
    name = 'retinanet_bnn-r18_fpn_digits'
    assert predict(f'bnn_plugins::detection/{name}.py', str(zoo.path(name)), files[2], str(tmp_path)) == 4


@pytest.mark.scale
def test_two_workers(files, tmp_path):
    assert predict(*files, str(tmp_path / 'one'), score=0.0) == predict(*files, str(tmp_path / 'two'), workers=2, score=0.0)
    assert len(list((tmp_path / 'two').iterdir())) == 2
    assert found(tmp_path / 'one') == found(tmp_path / 'two')


def test_bad_input(files, tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no picture'):
        predict(*files[:2], str(tmp_path), str(tmp_path / 'out'))
    with pytest.raises(ValueError, match='workers must be at least 1, but got 0'):
        predict(*files, str(tmp_path / 'out'), workers=0)
