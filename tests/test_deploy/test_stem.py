"""The real stem as one step: what is fused, what is left to torch and why, and that the model stays what it was."""

import copy

import pytest
import torch
from torch import nn

import bnn_kernels
from bnn_plugins import fuse_, load_packed_, pack_, save_packed, unfuse_, verify
from bnn_plugins.deploy import fused_steps
from bnn_plugins.deploy.fused.patterns.conv import ConvStep
from bnn_plugins.deploy.fused.patterns.stem import StemStep
from bnn_plugins.layers import BinaryConv2d, RPReLU
from bnn_plugins.layers.expand import Tile

from .fuse_nets import RandomNet, exact_image, make_exact_
from .nets import randomise_

pytestmark = pytest.mark.skipif(bnn_kernels.available_backends()['cpu'] != 'available', reason='the engine was not compiled')
WHOLE = 'stem: conv, pool, norm, RPReLU, sign of layer1.0.conv1'


def resnet(**kwargs):
    backbones = pytest.importorskip('bnn_plugins.models.backbones')
    return randomise_(backbones.BNNResNet(18, base_channels=8, **kwargs)).eval()


def stem(*parts: nn.Module, width: int = 8) -> nn.Sequential:
    """``parts``, then a binary layer that reads their result."""
    return nn.Sequential(*parts, BinaryConv2d(width, 4, 3, padding=1, method='reactnet')).eval()


@pytest.mark.parametrize('stream', [None, torch.bfloat16])
@pytest.mark.parametrize(('kwargs', 'text'), [
    ({}, WHOLE), (dict(in_channels=1), WHOLE), (dict(in_channels=4, method='bireal'), WHOLE.replace('RPReLU, ', '')),
    (dict(expand=dict(tau=2, style='es')), WHOLE.replace('norm', 'tile, norm')),
    (dict(expand=dict(tau=2, style='rep')), WHOLE.replace('norm', 'norm, tile'))], ids=str)
def test_resnets(kwargs, text, stream):
    torch.manual_seed(0)
    latent = resnet(**kwargs)
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed, stream_dtype=stream)
    assert report.stems == {'conv1': text}
    assert text in ' '.join(str(report).split())
    name, step = next(fused_steps(packed))
    assert (name, type(step)) == ('conv1', StemStep)
    x = torch.randn(2, kwargs.get('in_channels', 3), 61, 75)
    checked = verify(latent, packed, x)
    row = next(row for row in checked.rows if row.kind == text)
    assert checked.ok, checked
    assert (row.name, row.violations) == ('conv1', 0)
    assert row.positions == 2 * latent.layer1[0].conv1.in_channels * 16 * 19
    assert row.different <= (2 if stream is None else row.positions * 0.01)


def test_exact_where_nothing_rounds():
    """As in a random network, with its weights of few bits: the stem, its signs, and what is behind them."""
    for seed in range(6):
        torch.manual_seed(seed)
        model, x = make_exact_(pack_(RandomNet(seed).eval())), exact_image(2, 3, 11, 14)
        pool = next(i for i, module in enumerate(model.stem) if isinstance(module, nn.MaxPool2d))
        with torch.no_grad():
            expected = model(x)
            report = fuse_(model)
            assert report.stems.keys() == {'stem.0'}
            assert report.stems['stem.0'].startswith('stem: conv, pool, norm' if pool == 1 else 'not fused: ')
            assert all(map(torch.equal, model(x), expected))


def test_saved_loaded_and_taken_back(tmp_path):
    model, x = pack_(resnet()), torch.randn(1, 3, 40, 48)
    with torch.no_grad():
        expected = model(x)
        fuse_(model)
        fused = model(x)
        save_packed(model, tmp_path / 'model.safetensors')
        other = resnet()
        load_packed_(other, tmp_path / 'model.safetensors')
        assert fuse_(other).stems == {'conv1': WHOLE}
        assert all(map(torch.equal, other(x), fused))
        assert all(map(torch.equal, copy.deepcopy(model)(x), fused))
        assert all(map(torch.equal, unfuse_(model)(x), expected))


def test_it_follows_its_parameters():
    model, x = pack_(resnet()), torch.randn(1, 3, 40, 48)
    fuse_(model)
    step = next(fused_steps(model))[1]
    with torch.no_grad():
        before = step(x)[1].clone()
        model.conv1.weight *= 2
        model(x)
        assert not torch.equal(step(x)[1], before)
        model.bfloat16()
        assert model(x.bfloat16())[0].dtype == torch.bfloat16
        assert type(next(fused_steps(model))[1]) is StemStep
        with bnn_kernels.set_backend('reference'):  # as on a device that the engine does not run on
            model.float()(x)
        assert type(next(fused_steps(model))[1]) is ConvStep


@pytest.mark.parametrize(('parts', 'text'), [
    ([nn.Conv2d(3, 8, 3)], 'stem: conv, sign of 1'),
    ([nn.Conv2d(3, 8, 3, padding='same'), nn.PReLU()], 'stem: conv, PReLU, sign of 2'),
    ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), RPReLU(8)], 'stem: conv, norm, RPReLU, sign of 3'),
    ([nn.Conv2d(3, 8, 3), nn.MaxPool2d((3, 2), (2, 3), (1, 0)), nn.Hardtanh()], 'stem: conv, pool, Hardtanh, sign of 3'),
    ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3)], 'not fused: 3 stays as it is'),
    ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.MaxPool2d(3)], 'not fused: 2 stays as it is'),
    ([nn.Conv2d(3, 8, 3), nn.MaxPool2d(3, ceil_mode=True)], 'not fused: 1 stays as it is'),
    ([nn.Conv2d(3, 8, 3), nn.GELU()], 'not fused: 1 stays as it is'),
    ([nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Unflatten(1, (8, 9, 9))], 'not fused: 1 stays as it is'),
    ([nn.Conv2d(3, 8, 3, dilation=2)], 'not fused: has groups or a dilation'),
    ([nn.Conv2d(2, 8, 3, groups=2)], 'not fused: has groups or a dilation'),
    ([nn.Conv2d(3, 8, 2, padding='same')], "not fused: padding='same' with an even kernel pads one side more than the other"),
    ([nn.Conv2d(3, 4, 3), Tile(2), nn.BatchNorm2d(8)], 'stem: conv, tile, norm, sign of 3'),
    ([nn.Conv2d(5, 8, 3)], None),
], ids=str)
def test_what_is_fused_and_what_is_not(parts, text):
    torch.manual_seed(0)
    latent = randomise_(stem(*parts)).eval()
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert report.stems == ({} if text is None else {'0': text})
    checked = verify(latent, packed, torch.randn(2, parts[0].in_channels, 11, 11))
    assert checked.ok, checked


def test_hooks_and_other_backends_leave_it_to_torch():
    model = pack_(resnet())
    handle = model.conv1.register_forward_hook(lambda *_: None)
    assert fuse_(model).stems == {'conv1': 'not fused: has forward hooks'}
    handle.remove()
    with bnn_kernels.set_backend('reference'):
        assert fuse_(model).stems == {'conv1': 'not fused: no backend but the reference has stem2d on cpu'}


def test_damage_is_found():
    latent = resnet()
    packed = pack_(copy.deepcopy(latent))
    fuse_(packed)
    with torch.no_grad():
        packed.conv1.weight += 1e-3
    checked = verify(latent, packed, torch.randn(1, 3, 40, 48))
    assert {row.name for row in checked.rows if row.violations} == {'conv1'}
