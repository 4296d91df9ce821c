"""BinaryOptimWrapperConstructor: learning rate and weight decay for each kind of parameter."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.engine import BinaryOptimWrapperConstructor
from bnn_plugins.layers import BinaryAttention, BinaryConv2d, BinaryLinear, LayerScale, RPReLU
from bnn_plugins.models import BNNResNet

LR, WD = 0.5, 0.1


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.react = BinaryConv2d(4, 4, 3, method='reactnet')
        self.recu = BinaryLinear(4, 4, method='recu')
        self.norm = nn.BatchNorm2d(4)
        self.rprelu = RPReLU(4)
        self.prelu = nn.PReLU(4)
        self.depthwise = BinaryConv2d(4, 4, 3, groups=4, method='bireal', bias=False)
        self.attention = BinaryAttention(4)
        self.scale = LayerScale(4)


KINDS = {
    'stem.weight': 'real', 'stem.bias': 'bias',
    'react.weight': 'latent', 'react.bias': 'bias', 'react.activation.shift': 'threshold',
    'recu.weight': 'latent', 'recu.bias': 'bias', 'recu.weight_binarizer.alpha': 'threshold',
    'norm.weight': 'norm', 'norm.bias': 'norm',
    'rprelu.gamma': 'threshold', 'rprelu.slope': 'threshold', 'rprelu.zeta': 'threshold', 'prelu.weight': 'threshold',
    'depthwise.weight': 'latent',
    **{f'attention.{name}': 'threshold' for name in ('query.shift', 'key.shift', 'value.shift', 'probability.size')},
    'scale.scale': 'threshold', 'scale.shift': 'threshold',
}
NO_DECAY = {name: 0.0 for name, kind in KINDS.items() if kind in ('latent', 'threshold')}


def build(paramwise_cfg=None, model=None, optimizer=None):
    model = model or Model()
    optimizer = optimizer or dict(type='SGD', lr=LR, weight_decay=WD)
    cfg = dict(type='OptimWrapper', optimizer=optimizer)
    return model, BinaryOptimWrapperConstructor(cfg, paramwise_cfg)(model).optimizer


def settings(paramwise_cfg=None, model=None, key='weight_decay', optimizer=None):
    """``name -> value of key`` in the optimizer's groups."""
    model, optimizer = build(paramwise_cfg, model, optimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: group[key] for group in optimizer.param_groups for p in group['params']}
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(found), 'each parameter once'
    return found


def expected(default, **kinds):
    return pytest.approx({name: kinds.get(kind, default) for name, kind in KINDS.items()})


def test_the_table_is_complete():
    assert set(KINDS) == {name for name, _ in Model().named_parameters()}


@pytest.mark.parametrize('paramwise_cfg', [None, {}])
def test_defaults(paramwise_cfg):
    assert settings(paramwise_cfg) == expected(WD, latent=0, threshold=0)
    assert settings(paramwise_cfg, key='lr') == expected(LR)


@pytest.mark.parametrize(('cfg', 'decay', 'rate'), [
    (dict(latent_lr_mult=3.0), {}, dict(latent=3 * LR)),
    (dict(latent_decay_mult=0.5), dict(latent=0.5 * WD), {}),
    (dict(threshold_decay_mult=0.25), dict(threshold=0.25 * WD), {}),
    (dict(norm_decay_mult=0.0, bias_decay_mult=0.0), dict(norm=0, bias=0), {}),
    (dict(bias_lr_mult=2.0), {}, dict(bias=2 * LR)),
    (dict(dwconv_decay_mult=0.7, flat_decay_mult=0.6), dict(norm=0.6 * WD, bias=0.6 * WD), {}),
    (dict(latent_lr_mult=2.0, latent_decay_mult=1.0, threshold_decay_mult=1.0), dict(latent=WD, threshold=WD),
     dict(latent=2 * LR)),
], ids=str)
def test_multipliers(cfg, decay, rate):
    assert settings(cfg) == expected(WD, **{'latent': 0, 'threshold': 0, **decay})
    assert settings(cfg, key='lr') == expected(LR, **rate)


class TestCustomKeysWin:
    def test_rate_alone_leaves_the_decay(self):
        cfg = dict(custom_keys={'react': dict(lr_mult=0.1)}, latent_lr_mult=5.0)
        rates, decays = settings(cfg, key='lr'), settings(cfg)
        assert rates['react.weight'] == pytest.approx(0.1 * LR), 'not multiplied by latent_lr_mult'
        assert rates['react.activation.shift'] == pytest.approx(0.1 * LR)
        assert rates['recu.weight'] == pytest.approx(5 * LR)
        assert (decays['react.weight'], decays['react.activation.shift']) == (0, 0)

    def test_decay_alone_leaves_the_rate(self):
        cfg = dict(custom_keys={'react': dict(decay_mult=0.3), 'prelu': dict(decay_mult=1.0)}, latent_lr_mult=5.0)
        rates, decays = settings(cfg, key='lr'), settings(cfg)
        assert decays['react.weight'] == pytest.approx(0.3 * WD)
        assert decays['react.activation.shift'] == pytest.approx(0.3 * WD)
        assert decays['prelu.weight'] == pytest.approx(WD)
        assert decays['rprelu.gamma'] == pytest.approx(WD)
        assert decays['recu.weight'] == 0
        assert rates['react.weight'] == pytest.approx(5 * LR)

    def test_the_longest_key_counts(self):
        cfg = dict(custom_keys={'re': dict(decay_mult=0.9, lr_mult=0.9), 'recu.weight': dict(lr_mult=0.2), 'bn': {}})
        rates, decays = settings(cfg, key='lr'), settings(cfg)
        assert rates['recu.weight'] == pytest.approx(0.2 * LR)
        assert decays['recu.weight'] == 0, 'its own entry says nothing about the decay'
        assert decays['react.weight'] == pytest.approx(0.9 * WD)

    def test_absolute_values(self):
        cfg = dict(custom_keys={'react.weight': dict(weight_decay=0.77, lr=0.01)}, latent_lr_mult=5.0)
        assert settings(cfg)['react.weight'] == 0.77
        assert settings(cfg, key='lr')['react.weight'] == 0.01

    def test_real_parameters_as_in_mmengine(self):
        cfg = dict(custom_keys={'stem': dict(lr_mult=0.0, decay_mult=2.0)})
        assert settings(cfg)['stem.weight'] == pytest.approx(2 * WD)
        assert settings(cfg, key='lr')['stem.bias'] == 0


def test_frozen_parameters_are_left_out():
    model = Model()
    model.react.weight.requires_grad_(False)
    model.stem.requires_grad_(False)
    found = settings(dict(latent_lr_mult=2.0), model)
    assert set(found) == set(KINDS) - {'react.weight', 'stem.weight', 'stem.bias'}


def test_optimizers_with_a_decay_of_their_own():
    """AdamW decays by 0.01 when the config says nothing: not the latents."""
    found = settings(optimizer=dict(type='AdamW', lr=LR))
    assert found == expected(0.01, latent=0, threshold=0)


@pytest.mark.parametrize('key', ['latent_decay_mult', 'threshold_decay_mult'])
def test_a_factor_of_no_decay_is_refused(key):
    with pytest.raises(ValueError, match='factors of weight_decay'):
        build({key: 1.0}, optimizer=dict(type='SGD', lr=LR))


def test_unknown_keys_are_named():
    with pytest.raises(ValueError, match="'latent_lr'; did you mean 'latent_lr_mult'"):
        build(dict(latent_lr=2.0))


def test_wrapped_model():
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = Model()

    found = settings(model=Wrapper())
    assert {name.removeprefix('module.'): value for name, value in found.items()} == expected(WD, latent=0, threshold=0)


def test_a_layer_alone():
    """The model itself is the binary layer: names without a dot."""
    found = settings(dict(custom_keys={'bias': dict(decay_mult=0.5)}), BinaryLinear(4, 4, method='recu'))
    assert found == pytest.approx({'weight': 0, 'bias': 0.5 * WD, 'weight_binarizer.alpha': 0})


@pytest.mark.parametrize('method', list_methods())
def test_backbone(method):
    """No parameter of a binarizer decays, every real convolution does; one step works."""
    model = BNNResNet(18, method=method, base_channels=4, frozen_stages=1)
    found = settings(model=model, optimizer=dict(type='AdamW', lr=1e-3, weight_decay=WD))
    for name, p in model.named_parameters():
        if not p.requires_grad:
            assert name not in found
        elif '.gain.' in name or 'binarizer' in name or '.act' in name or ('.conv' in name and p.ndim == 4):
            assert found[name] == 0, name
        else:
            assert found[name] == WD, name


def test_decay_in_a_step():
    """A step without gradients: what decays, shrinks; latents and thresholds stay."""
    model = Model()
    for p in model.parameters():
        p.data.fill_(1.0)
        p.grad = torch.zeros_like(p)
    build(model=model)[1].step()
    for name, p in model.named_parameters():
        assert (p == 1).all() == (name in NO_DECAY), name


def test_registered():
    assert OPTIM_WRAPPER_CONSTRUCTORS.get('bnn_plugins.BinaryOptimWrapperConstructor') is BinaryOptimWrapperConstructor
