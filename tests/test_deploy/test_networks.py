"""Whole networks: the packed model computes what the latent one computes in evaluation mode, bit for bit."""

import copy

import pytest
import torch
from torch import nn

from bnn_plugins import binarize_, pack_
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.layers import BinaryLayer

from .nets import METHODS, is_signed, net, randomise_, same


def images(*shape):
    return torch.randn(*(shape or (2, 3, 14, 11)))


@torch.no_grad()
def check(model, x):
    expected = model(x)
    packed = pack_(copy.deepcopy(model))
    assert not any(isinstance(module, BinaryLayer) for module in packed.modules())
    expected, out = ([value] if isinstance(value, torch.Tensor) else value for value in (expected, packed(x)))
    assert same(out, expected)
    assert all(value.isfinite().all() for value in out)
    assert any(value.std() > 0 for value in out), 'constant outputs compare nothing'
    return packed


@pytest.mark.parametrize('method', METHODS, ids=str)
class TestNet:
    def test_outputs(self, method):
        for pad_value in (-1, 0, 1) if is_signed(method) else (0,):
            model = net(method=method, pad_value=pad_value)
            assert (model.body[0].norm.weight < 0).any()
            check(model, images())

    def test_channels_last(self, method):
        model = net(method=method)
        check(model, images().to(memory_format=torch.channels_last))
        check(model.to(memory_format=torch.channels_last), images().to(memory_format=torch.channels_last))

    def test_after_training(self, method):
        model = net(method=method).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            sum(out.square().mean() for out in model(images(4, 3, 14, 11))).backward()
            optimizer.step()
        packed = check(model.eval(), images())
        assert not any(p.requires_grad for m in packed.modules() if isinstance(m, PackedLayer) for p in m.parameters())
        assert all(p.requires_grad for p in packed.predict.parameters()), 'float layers are left alone'

    def test_fused_norms(self, method):
        """The norms of the float network become factors of the binary layers, of both signs; then it is packed."""
        model = net(method=method)
        x = images()
        fused = pytest.importorskip('mmcv.cnn').fuse_conv_bn(copy.deepcopy(model))
        assert (fused.body[0].conv.folded_scale < 0).any()
        with torch.no_grad():
            for left, right in zip(fused(x), model(x), strict=True):
                # Rounding may turn a sign behind the norm; most must be as before.
                assert (left - right).abs().median() < 1e-3
        check(fused, x)

    def test_double(self, method):
        check(net(method=method).double(), images().double())

    def test_half(self, method):
        check(net(method=method).bfloat16(), images().bfloat16())


@pytest.mark.parametrize('method', ['reactnet', 'xnor', 'recu', dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
def test_resnet(method):
    backbones = pytest.importorskip('bnn_plugins.models.backbones')
    check(randomise_(backbones.BNNResNet(18, base_channels=8, method=method)).eval(), images(1, 3, 64, 96))


def test_converted_network():
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1),
                          nn.BatchNorm2d(24), nn.ReLU6(), nn.Conv2d(24, 24, 3, padding=1, groups=3), nn.BatchNorm2d(24),
                          nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 40), nn.Linear(40, 7))
    binarize_(model, 'reactnet')
    packed = check(randomise_(model).eval(), images())
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) == 4


def test_behind_a_global_pool():
    """1 x 1 images: their memory format is ambiguous, and what follows must sum in the latent model's order."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 1),
                          nn.Upsample(scale_factor=9), nn.Conv2d(32, 16, 3))
    binarize_(model, dict(method='bireal', rules={'5': 'float'}))
    randomise_(model).eval()
    check(model, images())
    check(model, images().to(memory_format=torch.channels_last))


def test_pack_returns_the_model_in_evaluation_mode():
    model = net().train()
    assert pack_(model) is model
    assert not any(module.training for module in model.modules())


def test_hooks_and_names_stay():
    model = net()
    names = {name for name, module in model.named_modules() if isinstance(module, BinaryLayer)}
    seen = []
    model.head.register_forward_hook(lambda *_: seen.append(1))
    pack_(model)
    assert {name for name, module in model.named_modules() if isinstance(module, PackedLayer)} == names
    model(images())
    assert len(seen) == 2


def test_memory():
    """No latent weight is kept anywhere: the bits, scales and thresholds are all the tensors there are."""
    model = net(method='reactnet', width=64)
    before = sum(t.nbytes for t in model.state_dict().values())
    latents = {name: module.weight.numel() for name, module in model.named_modules() if isinstance(module, BinaryLayer)}
    pack_(model)
    after = sum(t.nbytes for t in model.state_dict().values())
    assert before - after > 0.9 * 4 * sum(latents.values())
    for name, weights in latents.items():
        layer = model.get_submodule(name)
        assert layer.weight_bits.nbytes == weights / 8, 'widths are multiples of 32: no filling'
        assert set(vars(layer)) & {'weight', 'weight_binarizer'} == set()
