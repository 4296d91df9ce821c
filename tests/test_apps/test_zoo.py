"""The zoo: each file is the one of its card, loads by name in a new process, and reproduces the metric of its card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import bnn_plugins
from benchmarks.pretrained import run
from bnn_plugins import zoo
from bnn_plugins.apps.digits import DigitsRecipe, make_digits

ROOT = Path(__file__).parents[2]
MODELS = {model.name: model for model in run.MODELS if model.name in zoo.names()}
# Where the data of a model are; a model whose data are missing is loaded and run, and its metric is not measured.
DATA = {'retinanet_bnn-r18-half_fpn_bccd': 'data/bccd/BCCD', 'blstm_text': 'data/text', 'sr_bidiffsr_emoji': 'data/emoji',
        'resnet20_recu_cifar10': 'data/cifar10'}
# What a loaded model does in a new process, by its task.
USE = {
    'detection': 'from mmdet.apis import inference_detector; import numpy\n'
                 'print(len(inference_detector(model, numpy.zeros((120, 160, 3), "uint8")).pred_instances.keys()))',
    'classification': 'print(model(torch.zeros(1, 3, 32, 32)).shape)',
    'text': 'print(model.write("ROMEO:", 5))',
    'generation': 'print(model(num_inference_steps=1).images[0].size)',
    'super-resolution': 'print(model(torch.zeros(1, 3, 16, 16), num_inference_steps=1).images[0].size)',
}


@pytest.mark.parametrize('name', zoo.names())
def test_loads_by_name_in_a_new_process(name, tmp_path):
    """And without a warning that a fused part runs unfused."""
    code = f'import bnn_plugins, torch\nmodel = bnn_plugins.load({name!r})\n{USE[zoo.card(name)["task"]]}'
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip()
    assert 'unfused' not in result.stderr


LONG = 'retinanet_bnn-r18_fpn_digits'  # half a minute; the others take seconds


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.nightly] * (name == LONG)) for name in zoo.names()])
def test_reproduces_the_metrics_of_its_card(name, tmp_path, monkeypatch):
    if name in DATA and not (ROOT / DATA[name]).exists():
        pytest.skip(f'needs {DATA[name]}')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    if name in DATA:
        (tmp_path / 'data').symlink_to(ROOT / 'data')
    elif zoo.card(name)['task'] == 'detection':
        make_digits('work_dirs/digits', DigitsRecipe())
    assert run.measure(MODELS[name], zoo.path(name)) == pytest.approx(zoo.card(name)['metrics'], abs=2e-3)


def test_the_zoo_is_small():
    sizes = [zoo.path(name).stat().st_size for name in zoo.names()]
    assert max(sizes) <= run.LARGEST
    assert sum(sizes) <= run.ALL


@pytest.mark.parametrize('name', zoo.names())
def test_the_card_is_complete_and_that_of_the_command(name):
    card, model = zoo.card(name), MODELS[name]
    assert card['train'] == model.train
    assert card['bytes'] == zoo.path(name).stat().st_size
    assert card['metrics']
    assert all(card[key] for key in ('task', 'data', 'data_licence', 'licence', 'config', 'commit', 'pack', 'sha256'))
    assert (ROOT / card['config']).is_file()


def test_another_file_under_the_name_is_refused(tmp_path, monkeypatch):
    name = zoo.names()[0]
    (tmp_path / f'{name}.json').write_text((zoo.FOLDER / f'{name}.json').read_text())
    (tmp_path / f'{name}.safetensors').write_bytes(zoo.path(name).read_bytes()[:-1] + b'!')
    monkeypatch.setattr(zoo, 'FOLDER', tmp_path)
    with pytest.raises(ValueError, match='not the file of its card'):
        bnn_plugins.load(name)


def test_an_unknown_name_names_the_nearest():
    with pytest.raises(KeyError, match=f"did you mean '{zoo.names()[0]}'"):
        bnn_plugins.load(zoo.names()[0] + 's')


def test_an_inferencer_takes_a_name(tmp_path):
    name = next(name for name in zoo.names() if zoo.card(name)['task'] == 'detection')
    code = f"""import bnn_plugins, numpy
from mmdet.apis import DetInferencer
inferencer = DetInferencer({name!r}, device='cpu', show_progress=False)
assert any(isinstance(module, bnn_plugins.deploy.PackedLayer) for module in inferencer.model.modules())
print(*inferencer(numpy.zeros((64, 64, 3), 'uint8'))['predictions'][0])"""
    result = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {'labels', 'scores', 'bboxes'} <= set(result.stdout.split())


def test_the_page_has_the_table_of_the_cards():
    assert zoo.table() in (ROOT / 'docs/zoo.md').read_text()
    assert json.loads((zoo.FOLDER / f'{zoo.names()[0]}.json').read_text()) == zoo.card(zoo.names()[0])
