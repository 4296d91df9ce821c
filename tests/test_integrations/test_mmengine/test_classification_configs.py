"""``tools/train.py`` on every classification config, for two iterations."""

import pytest
from mmengine.config import Config

import bnn_plugins
from bnn_plugins.integrations.mmengine.run import train

from .classification import CONFIGS, make_sets, short_run

EACH = 4  # of them, one is trained daily


@pytest.fixture(scope='session')
def sets(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp('images'))


@pytest.mark.parametrize('config', [pytest.param(path, id=path.stem, marks=[pytest.mark.nightly] * (number % EACH > 0))
                                    for number, path in enumerate(CONFIGS)])
def test_config_trains(config, sets, tmp_path):
    runner = train(str(config), str(tmp_path), cfg_options=short_run(config, sets))
    assert runner.iter == 2
    latents = [m for m in runner.model.modules() if hasattr(m, 'weight_binarizer')]
    assert latents
    assert all(p.isfinite().all() for p in runner.model.parameters())
    steps = sorted(path.name for path in tmp_path.glob('step?'))
    assert steps == [f'step{number + 1}' for number in range(len(Config.fromfile(config).get('steps', [])))]


def test_every_config_is_in_the_index():
    index = (CONFIGS[0].parent / 'metafile.yml').read_text()
    assert [line.split('/')[-1] for line in index.splitlines() if 'Config:' in line] == [path.name for path in CONFIGS]


def test_every_method_has_a_config():
    methods = {str(method) for path in CONFIGS for method in methods_of(Config.fromfile(path).model)}
    assert methods >= set(bnn_plugins.list_methods()) - {'bidm', 'binarydm', 'lwsdet'}, 'of diffusion and detection'


def methods_of(model):
    for part in (model.backbone, model.head):
        method = part.get('method')
        yield method['type'] if isinstance(method, dict) else method
