"""Checkpoints of the papers' released networks, filled by rule (tests/golden/networks), give the official logits."""

import copy
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

import bnn_plugins
from bnn_plugins import import_checkpoint
from bnn_plugins.registry import MODELS

REPOSITORY = Path(__file__).parents[2]
NETWORKS = sorted((REPOSITORY / 'tests/golden/networks').glob('*.json'))
SMALL = 'irnet_resnet20'


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


def read(name: str) -> dict:
    return json.loads((REPOSITORY / f'tests/golden/networks/{name}.json').read_text())


def publish(data: dict, path: Path, negative_gamma: bool = False, **changes) -> Path:
    """The checkpoint as its authors would have saved it; ``changes``: tensors instead, ``None`` leaves one out."""
    state = {key: changes.get(key, value) for key, value in filled(data, negative_gamma).items()}
    state |= {key: value for key, value in changes.items() if key not in state}
    state = {data['prefix'] + key: value for key, value in state.items() if value is not None}
    torch.save(dict(epoch=3, arch='net', best_top1_acc=torch.tensor(60.0), state_dict=state), path)
    return path


def images(data: dict) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(data['shape']).astype(np.float32))


def of_config(data: dict):
    """The network of the config that cites the published number."""
    cfg = Config.fromfile(REPOSITORY / data['config']).model
    cfg.pop('distill', None)  # a teacher with weights from the network
    if data['method']:
        cfg.backbone.method = data['method']
    return MODELS.build(cfg).double()


@pytest.mark.parametrize('path', NETWORKS, ids=lambda path: path.stem)
def test_a_published_checkpoint_gives_the_official_logits(path, tmp_path):
    """In the network of the config, in float64. Factors of norms have both signs."""
    data = json.loads(path.read_text())
    imported = import_checkpoint(publish(data, tmp_path / 'theirs.pth', negative_gamma=True), data['source'])
    model = of_config(data)
    model.load_state_dict(imported.state_dict, strict=True)
    with torch.no_grad():
        out = model.eval()(images(data).double())
    expected = data['logits_negative_gamma']
    rows = torch.tensor(expected.get('all') or expected['first'], dtype=torch.float64)
    assert (out[:, :rows.shape[1]] - rows).abs().max() <= 1e-9 * rows.abs().max()
    if 'argmax' in expected:
        assert out.argmax(1).tolist() == expected['argmax']


def test_positive_factors_and_the_file_that_is_written(tmp_path):
    data, out = read(SMALL), tmp_path / 'ours.pth'
    imported = import_checkpoint(publish(data, tmp_path / 'theirs.pth'), data['source'], out)
    assert imported.network == 'ResNet-20'
    written = torch.load(out, weights_only=True)
    assert written['meta'] == dict(network='ResNet-20', backbone=imported.backbone, head=imported.head)
    model = of_config(data)
    model.load_state_dict(written['state_dict'], strict=True)
    with torch.no_grad():
        rows = torch.tensor(data['logits']['all'], dtype=torch.float64)
        assert (model.eval()(images(data).double()) - rows).abs().max() <= 1e-9 * rows.abs().max()


def test_tool(tmp_path):
    theirs, ours = publish(read(SMALL), tmp_path / 'theirs.pth'), tmp_path / 'ours.pth'
    runs = [subprocess.run([sys.executable, 'tools/import_checkpoint.py', '--from', source, theirs, ours], cwd=REPOSITORY,
                           text=True, capture_output=True) for source in ('irnet', 'recu')]
    assert [run.returncode for run in runs] == [0, 1], runs[0].stderr
    assert f"checkpoint={str(ours)!r}, prefix='backbone.'))" in runs[0].stdout
    assert ours.exists()
    assert "it has nothing for 'backbone.stages.0.0.unit1.conv.weight_binarizer.alpha'" in runs[1].stderr.splitlines()[-1]


@pytest.mark.parametrize('options', [dict(), dict(pool_last=False)], ids=str)
def test_an_imported_backbone_of_a_detector_packs_exactly(options, tmp_path):
    """Two lines of a config: the maps of the classifier's backbone, whatever the order of its stem, and of the bits."""
    data, out = read('reactnet-18'), tmp_path / 'ours.pth'
    imported = import_checkpoint(publish(data, tmp_path / 'theirs.pth', negative_gamma=True), data['source'], out)
    classifier = of_config(data).float().eval()
    classifier.load_state_dict(imported.state_dict)
    backbone = MODELS.build(imported.backbone | options | dict(
        out_indices=(0, 1, 2, 3), init_cfg=dict(type='Pretrained', checkpoint=str(out), prefix='backbone.')))
    backbone.init_weights()
    packed = bnn_plugins.pack_(copy.deepcopy(backbone.eval()))
    with torch.no_grad():
        x = images(data)
        maps = backbone(x)
        torch.testing.assert_close(maps[-1], classifier.backbone(x)[-1], rtol=1e-4, atol=1e-4)
        for ours, bits in zip(maps, packed(x), strict=True):
            assert torch.equal(ours, bits)


@pytest.mark.slow
def test_reactnet_a_in_a_retinanet(tmp_path):
    """The backbone of a config changes; what the detector computes is what its bits compute."""
    pytest.importorskip('mmdet')
    data, out = read('reactnet-a_step2'), tmp_path / 'ours.pth'
    imported = import_checkpoint(publish(data, tmp_path / 'theirs.pth', negative_gamma=True), data['source'], out)
    cfg = Config.fromfile(REPOSITORY / 'configs/detection/retinanet_bnn-r18_fpn_bccd.py').model
    cfg.backbone = dict(type='bnn_plugins.BNNReActNet', method='reactnet', out_indices=(1, 2, 3, 4),
                        init_cfg=dict(type='Pretrained', checkpoint=str(out), prefix='backbone.'))
    cfg.neck.in_channels = [128, 256, 512, 1024]
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg)
    detector.init_weights()
    name = 'stages.4.1.unit1.conv.weight'
    assert torch.equal(detector.backbone.get_parameter(name), imported.state_dict[f'backbone.{name}'])
    packed = bnn_plugins.pack_(copy.deepcopy(detector.eval()))
    with torch.no_grad():
        for ours, bits in zip(detector(images(data)), packed(images(data)), strict=True):
            assert all(map(torch.equal, ours, bits))


def test_names_in_front_of_a_student_and_a_teacher(tmp_path):
    data, path = read(SMALL), tmp_path / 'theirs.pth'
    state = filled(data, False)
    torch.save({**{f'module.student.module.{key}': value for key, value in state.items()},
                'module.teacher.conv1.weight': torch.zeros(3)}, path)
    assert torch.equal(import_checkpoint(path, 'irnet').state_dict['backbone.stem.conv.weight'], state['conv1.weight'])


class Executed:
    def __reduce__(self):
        return print, ('executed',)


def refused(path: Path, source: str, because: str) -> None:
    with pytest.raises(ValueError, match=because) as error:
        import_checkpoint(path, source)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('changes', 'because'), [
    ({'layer1.0.conv1.weight': None}, "it has nothing for 'backbone.stages.0.0.unit1.conv.weight'"),
    ({'layer1.0.conv3.weight': torch.zeros(16, 16, 3, 3)}, "it has 'layer1.0.conv3.weight', which that network has not"),
    ({'conv9.weight': torch.zeros(1)}, "it has 'conv9.weight', which that network has not"),
    ({'layer1.0.conv1.weight': torch.zeros(16, 16, 1, 9)}, r"'layer1.0.conv1.weight' has the shape \(16, 16, 1, 9\) where"),
    ({'layer2.0.conv1.weight': torch.zeros(16, 16, 3, 3)}, r'has the shape \(16, 16, 3, 3\) where \(32, 16, 3, 3\) is needed'),
], ids=str)
def test_another_name_or_shape_is_refused(changes, because, tmp_path):
    refused(publish(read(SMALL), tmp_path / 'theirs.pth', **changes), 'irnet', because)


def test_another_network_is_refused(tmp_path):
    path = publish(read(SMALL), tmp_path / 'theirs.pth')
    refused(path, 'bireal', "not a network of bireal.*names are those of irnet")
    refused(path, 'rbnn', "ResNet-20 .*it has nothing for 'backbone.stages.0.0.unit1.conv.weight_binarizer.alpha'")
    with pytest.raises(ValueError, match="unknown source of checkpoints 'irnett'"):
        import_checkpoint(path, 'irnett')


def test_a_file_that_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / 'theirs.pth'
    torch.save(dict(state_dict=Executed()), path)
    refused(path, 'irnet', 'holds .*print, which is no tensor and is not executed')
    whole = publish(read(SMALL), path).read_bytes()
    path.write_bytes(whole[:-100])
    refused(path, 'irnet', 'is cut off, or no checkpoint of PyTorch')
    path.write_bytes(b'')
    refused(path, 'irnet', 'is cut off')
    for content in ([torch.zeros(1)], dict(state_dict={}), dict(epoch=3)):
        torch.save(content, path)
        refused(path, 'irnet', "has no state dict of tensors, by itself or as 'state_dict' or 'model'")


def test_weights_that_have_not_become_signs_are_refused(tmp_path):
    data = read('bnext-t')
    warm = {key: torch.full(shape, 1e-7) for key, shape, _ in data['state_dict'] if key.endswith('binary_conv.temperature')}
    refused(publish(data, tmp_path / 'theirs.pth', **warm), 'bnext', 'temperature is 1e-07: .* real weights')
