"""tools/benchmark.py on a thin detector and on a classifier; float twins; what it says when something is wrong."""

import csv

import pytest
import torch
from mmengine.config import Config
from torch import nn

pytest.importorskip('jinja2')
pytest.importorskip('matplotlib')

import bnn_plugins  # noqa: F401
from bnn_plugins.integrations.mmengine import benchmark as tool
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.pack import build_model
from bnn_plugins.integrations.mmengine.run import load_config
from bnn_plugins.layers import BinaryLayer

from ..conftest import CONFIG, REPOSITORY

THIN = {'model.backbone.base_channels': 8, 'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 16,
        'model.bbox_head.in_channels': 16, 'model.bbox_head.feat_channels': 16}
FORMS = ('fused', 'fused-int8', 'float32', 'bfloat16')


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def run(**more):
    return tool.benchmark(CONFIG, cfg_options=dict(THIN), size=[(64, 96)], variants=FORMS, rounds=1, **more)


def test_a_detector(tmp_path, capsys):
    result = run(out=str(tmp_path))
    assert [(row.part, row.variant) for row in result.rows] == [(part, form) for part in ('backbone', 'network', 'detector')
                                                               for form in FORMS]
    assert result.ok
    assert len(result.checks) == 3
    assert {(row.height, row.width) for row in result.rows} == {(64, 96)}
    assert result.facts['Input'] == 'random images'
    assert result.facts['Weights'].startswith('random')
    assert 'bnn_plugins.BNNResNet is mmdet.ResNet (avg_down)' in result.facts['Float twin']
    assert 'bnn_plugins.BNNFPN is mmdet.FPN' in result.facts['Float twin']
    rows = list(csv.DictReader((tmp_path / 'throughput.csv').open()))
    assert len(rows) == len(result.rows)
    assert (tmp_path / 'throughput.html').stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert printed.index('check: ok') < printed.index('median ms')
    assert f'{tmp_path / "throughput.html"} written' in printed
    layers = list(csv.DictReader((tmp_path / 'layers.csv').open()))
    assert any(line['layer'] == 'detector.bbox_head.retina_cls' and line['part'] == 'detector' for line in layers)


def test_one_part_of_a_packed_file(tmp_path):
    options = {**THIN, 'train_dataloader': None}
    model = build_model(load_config(CONFIG, cfg_options=dict(THIN)))
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    file = pack_checkpoint(CONFIG, str(tmp_path / 'model.pth'), str(tmp_path / 'model.safetensors'), cfg_options=dict(THIN))
    result = tool.benchmark(CONFIG, str(file), cfg_options=options, size=[(64, 64)], variants=('packed', 'float32'), rounds=1,
                            parts=['backbone'])
    assert [row.part for row in result.rows] == ['backbone'] * 2
    assert result.checks == []
    assert result.rows[0].check == ''
    assert result.facts['Weights'] == str(file)


def test_weights_of_both_models(tmp_path):
    """Those of the checkpoints; without one they are drawn, the same each time, and pretrained ones are not fetched."""
    path = tmp_path / 'classifier.py'
    path.write_text("default_scope = 'mmdet'\nmodel = dict(type='bnn_plugins.BNNResNet', depth=18, base_channels=8, "
                    "init_cfg=dict(type='Pretrained', checkpoint='no/such/file.pth'))\n")
    _, drawn, facts = tool.build_models(str(path), None, None, None, None, torch.device('cpu'))
    assert (facts['Weights'][:6], facts['Weights of the twin']) == ('random', 'random')
    _, again, _ = tool.build_models(str(path), None, None, None, None, torch.device('cpu'))
    files = {}
    for name in ('latent', 'twin'):
        states = [getattr(models, name).state_dict() for models in (drawn, again)]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
        files[name] = str(tmp_path / f'{name}.pth')
        torch.save({'state_dict': {key: value + 1 for key, value in states[0].items()}}, files[name])
    _, loaded, _ = tool.build_models(str(path), files['latent'], None, files['twin'], None, torch.device('cpu'))
    for name in ('latent', 'twin'):
        state = getattr(drawn, name).state_dict()
        assert all(torch.equal(value, state[key] + 1) for key, value in getattr(loaded, name).state_dict().items())


def test_default_size():
    pad = dict(data_preprocessor=dict(pad_size_divisor=32))
    wide = Config(dict(model=pad, test_pipeline=[dict(type='Load'), dict(type='Resize', scale=(200, 90))]))
    assert tool.default_size(wide) == (96, 224), 'height and width, padded; a config says width and height'
    assert tool.default_size(Config(dict(model=dict(), test_pipeline=[]))) == (224, 224)


def test_a_classifier_takes_any_image(tmp_path):
    path = tmp_path / 'classifier.py'
    path.write_text("default_scope = 'mmdet'\nmodel = dict(type='bnn_plugins.BNNResNet', depth=18, base_channels=8)\n")
    result = tool.benchmark(str(path), variants=('fused', 'float32'), batch=[1, 2], size=[(32, 32)], rounds=1)
    assert [(row.part, row.batch, row.check) for row in result.rows] == [
        ('network', batch, check) for batch in (1, 2) for check in ('ok', '')]


# --- float twins -------------------------------------------------------------------------------------------------------------

def test_twin_of_native_models_has_the_same_parameter_names():
    cfg = load_config('configs/detection/retinanet_bnn-r18_fpn_bccd.py')
    twin = tool.float_config(cfg.model.to_dict())
    assert twin['backbone']['type'] == 'mmdet.ResNet'
    assert twin['neck']['type'] == 'mmdet.FPN'
    assert 'method' not in {**twin['backbone'], **twin['neck']}
    cfg.model = Config(dict(model=twin)).model
    model = build_model(cfg)
    names = {name for name, _ in model.named_parameters()}
    latent = {name for name, _ in build_model(load_config(cfg.filename)).named_parameters()}
    extra = latent - names
    assert names <= latent
    assert all(name.rpartition('.')[2] in ('shift', 'gamma', 'slope', 'zeta') for name in extra)


def test_twins_of_the_other_ways_in():
    wrapped = dict(type='bnn_plugins.binarized', module=dict(type='mmdet.ResNet', depth=18), method='xnor')
    layered = dict(type='FPN', conv_cfg=dict(type='bnn_plugins.BinaryConv2d', method='xnor'), num_outs=2)
    model = dict(type='RetinaNet', backbone=wrapped, neck=[layered, dict(type='FPN', conv_cfg=dict(type='DCN'))])
    assert tool.float_config(model) == dict(type='RetinaNet', backbone=dict(type='mmdet.ResNet', depth=18), neck=[
        dict(type='FPN', num_outs=2), dict(type='FPN', conv_cfg=dict(type='DCN'))])
    assert tool.float_config(dict(type='bnn_plugins.BNNFPN', method='xnor', norm_cfg=dict(type='GN')))['norm_cfg'] == dict(
        type='GN')


def test_twin_of_a_classifier_is_the_same_network_without_a_method():
    cfg = load_config('configs/classification/resnet20_es-recu-tau2_cifar10.py')
    twin = tool.float_config(cfg.model.to_dict())
    assert twin['type'] == 'bnn_plugins.BinaryClassifier'
    assert twin['backbone'] == dict(type='bnn_plugins.BNNCifarResNet', depth=20, method=None)
    cfg.model = Config(dict(model=twin)).model
    assert not any(isinstance(module, BinaryLayer) for module in build_model(cfg).modules())
    imagenet = tool.float_config(load_config('configs/classification/resnet18_recu_imagenet.py').model.to_dict())
    assert imagenet['backbone']['norm_eval'] is False, 'in training, the statistics are those of the batch'


def test_no_twin_is_known():
    with pytest.raises(ValueError, match=r'no float twin is known for bnn_plugins.BNNOther: name its config with --float'):
        tool.float_config(dict(type='bnn_plugins.BNNOther'))


def test_a_twin_by_name():
    result = run(float_config='configs/detection/retinanet_r18_fpn_digits.py', parts=['backbone'])
    assert result.facts['Float twin'].endswith('retinanet_r18_fpn_digits.py')


def test_body_is_the_stages():
    from mmdet.models.backbones import ResNet
    assert [type(stage) for stage in tool.body(ResNet(18, base_channels=8))] == [type(ResNet(18).layer1)] * 4


def test_time_steps_are_made_up():
    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, sample, timestep, condition=None):
            return self.conv(sample) + timestep.view(-1, 1, 1, 1)

    class Other(UNet):
        def forward(self, sample, text):
            return self.conv(sample)

    sample, step = tool.example_inputs(UNet(), 2, (8, 8), torch.device('cpu'))
    assert (sample.shape, step.shape, step.dtype) == ((2, 4, 8, 8), (2,), torch.int64)
    with pytest.raises(ValueError, match=r"Other\.forward wants 'text'"):
        tool.example_inputs(Other(), 2, (8, 8), torch.device('cpu'))


# --- bad input ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(('arguments', 'error', 'sentence'), [
    (dict(config='no.py'), FileNotFoundError, "the config 'no.py' does not exist"),
    (dict(checkpoint='no.pth'), FileNotFoundError, "'no.pth' does not exist: leave it out to measure random weights"),
    (dict(float_checkpoint='no.pth'), FileNotFoundError, "the checkpoint 'no.pth' does not exist"),
    (dict(size=[(60, 64)]), ValueError, r'the size 60x64 is no multiple of 32 \(pad_size_divisor of the config\): use 64x64'),
    (dict(size=[(0, 64)]), ValueError, 'use 32x64'),
    (dict(variants=['paked']), ValueError, "unknown variant 'paked': did you mean 'packed'"),
    (dict(parts=['head']), ValueError, "has no part 'head': it has backbone, network, detector"),
    (dict(backends=['nuba']), ValueError, "Unknown backend 'nuba'.*did you mean 'numba'"),
    (dict(config='configs/detection/retinanet_r18_fpn_digits.py'), ValueError, 'no binary layer: there is nothing to pack'),
])
def test_bad_input(arguments, error, sentence):
    arguments = {'config': CONFIG, 'size': [(64, 64)], 'variants': ['packed'], 'cfg_options': dict(THIN), **arguments}
    with pytest.raises(error, match=sentence):
        tool.benchmark(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu():
    with pytest.raises(RuntimeError, match='--device cuda: torch sees no GPU here; leave --device out'):
        tool.benchmark(CONFIG, device='cuda')


def test_size_on_the_command_line():
    from bnn_plugins.apps.commands.benchmark import image_size
    assert image_size('256x320') == (256, 320)
    import argparse
    with pytest.raises(argparse.ArgumentTypeError, match='write HEIGHTxWIDTH'):
        image_size('256')


CLASSIFIERS = sorted(path.name for path in (REPOSITORY / 'configs' / 'classification').glob('*resnet*.py'))
NO_TWIN = ('resnet20_bnfree_cifar10.py', 'resnet50_bireal_imagenet.py')


@pytest.mark.parametrize('config', CLASSIFIERS)
def test_twins_of_residual_networks_can_be_built(config):
    """Mutation: an argument that only our backbone has goes to mmdet's."""
    cfg = load_config(f'configs/classification/{config}')
    if config in NO_TWIN:
        with pytest.raises(ValueError, match='no float twin is known for'):
            tool.float_config(cfg.model.to_dict())
        return
    cfg.model = Config(dict(model=tool.float_config(cfg.model.to_dict()))).model
    assert not any(isinstance(module, BinaryLayer) for module in build_model(cfg).modules())
