"""BNNFPN under the contract that mmdet's tests hold its FPN to."""

import pytest
import torch
from mmdet.models.necks import FPN
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d
from bnn_plugins.models import BNNFPN, BinaryConvModule

IN_CHANNELS = [4, 8, 16, 32]


def features(size=64, batch=1):
    return [torch.randn(batch, c, -(-size // 2**i), -(-size // 2**i)) for i, c in enumerate(IN_CHANNELS)]


def neck(out_channels=8, num_outs=5, **kwargs):
    return BNNFPN(IN_CHANNELS, out_channels, num_outs, **kwargs)


@pytest.mark.parametrize('kwargs', [
    dict(start_level=1, end_level=2, num_outs=3),  # not end_level - start_level + 1
    dict(start_level=1, num_outs=2),  # fewer than the inputs
    dict(start_level=1, end_level=4, num_outs=2),
    dict(start_level=1, end_level=3, num_outs=1),
    dict(start_level=1, add_extra_convs='on_xxx', num_outs=5),
], ids=str)
def test_impossible_levels(kwargs):
    with pytest.raises(AssertionError):
        neck(**kwargs)


@pytest.mark.parametrize('kwargs', [dict(conv_cfg=dict(type='Conv2d')), dict(act_cfg=dict(type='ReLU'))])
def test_own_convolutions(kwargs):
    with pytest.raises(ValueError, match='use method= and act='):
        neck(**kwargs)


def test_unknown_method():
    with pytest.raises(ValueError, match="did you mean 'reactnet'"):
        neck(method='reactne')


@pytest.mark.parametrize('size', [64, 50])
@pytest.mark.parametrize('kwargs', [
    dict(), dict(end_level=3), dict(num_outs=4), dict(start_level=1, num_outs=3), dict(start_level=1, end_level=2, num_outs=2),
    *(dict(start_level=start, num_outs=num_outs, add_extra_convs=extra) for start in (0, 1) for num_outs in (5, 6)
      for extra in (True, False, 'on_input', 'on_lateral', 'on_output')),
], ids=str)
def test_shapes_and_levels_are_those_of_fpn(kwargs, size):
    """Same number of convolutions and same shapes as the float neck, with every convolution binary."""
    binary = neck(**kwargs)
    real = FPN(IN_CHANNELS, 8, **{'num_outs': 5, **kwargs})
    feats = features(size, batch=2)
    outs, expected = binary(feats), real(feats)
    assert isinstance(outs, tuple)
    assert [out.shape for out in outs] == [out.shape for out in expected]
    assert binary.add_extra_convs == real.add_extra_convs
    for name in ('lateral_convs', 'fpn_convs'):
        ours, theirs = getattr(binary, name), getattr(real, name)
        assert [m.conv.weight.shape for m in ours] == [m.conv.weight.shape for m in theirs]
        assert all(type(m.conv) is BinaryConv2d for m in ours)
    assert not [m for m in binary.modules() if type(m) is nn.Conv2d]


@pytest.mark.parametrize('upsample_cfg', [dict(mode='bilinear', align_corners=True), dict(scale_factor=2)])
def test_upsampling(upsample_cfg):
    assert len(neck(start_level=1, add_extra_convs=True, upsample_cfg=upsample_cfg)(features(batch=2))) == 5


def test_arithmetic():
    """Laterals, the top-down sum and the outputs, once more from their parts."""
    model = neck(num_outs=4).eval()
    feats = features(size=16)
    laterals = [conv(x) for conv, x in zip(model.lateral_convs, feats, strict=True)]
    for i in (2, 1, 0):
        laterals[i] = laterals[i] + nn.functional.interpolate(laterals[i + 1], size=laterals[i].shape[2:], mode='nearest')
    for out, conv, x in zip(model(feats), model.fpn_convs, laterals, strict=True):
        assert torch.equal(out, conv(x))


def test_norm_everywhere_by_default():
    model = neck()
    for module in [*model.lateral_convs, *model.fpn_convs]:
        assert isinstance(module, BinaryConvModule)
        assert isinstance(module.bn, nn.BatchNorm2d)
        assert module.conv.bias is None
        assert type(module.act) is nn.Identity, 'heads expect features of both signs'


def test_no_norm_on_lateral():
    model = neck(no_norm_on_lateral=True)
    assert all(m.norm_name is None and m.conv.bias is not None for m in model.lateral_convs)
    assert all(isinstance(m.bn, nn.BatchNorm2d) for m in model.fpn_convs)


def test_options_reach_every_convolution():
    model = neck(method='irnet', act='hardtanh', pad_value=1, norm_cfg=dict(type='GN', num_groups=4))
    for module in [*model.lateral_convs, *model.fpn_convs]:
        assert (module.conv.method, module.conv.pad_value) == ('irnet', 1)
        assert isinstance(module.act, nn.Hardtanh)
        assert isinstance(module.gn, nn.GroupNorm)


def test_init_weights_reaches_the_latents():
    model = neck(out_channels=64)
    model.init_weights()
    weight = model.fpn_convs[0].conv.weight
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), 'Xavier, uniform'


@pytest.mark.parametrize('method', [*list_methods(), dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
@pytest.mark.parametrize('extra', ['on_input', 'on_output'])
def test_every_parameter_learns(method, extra):
    model = neck(method=method, start_level=1, add_extra_convs=extra)
    model.init_weights()
    feats = [f.requires_grad_() for f in features(batch=2)]
    sum((out * torch.randn_like(out)).sum() for out in model(feats)).backward()
    for name, p in model.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    assert all(f.grad.any() for f in feats[1:])


def test_a_relu_before_the_extra_convolutions_is_left_out():
    """As FCOS's config has it: its sign would always be +1, which the layer refuses in training."""
    torch.manual_seed(0)
    model = neck(add_extra_convs='on_input', num_outs=6, relu_before_extra_convs=True)
    torch.manual_seed(0)
    other = neck(add_extra_convs='on_input', num_outs=6)
    feats = features(size=128, batch=2)
    for a, b in zip(model.train()(feats), other.train()(feats), strict=True):
        assert torch.equal(a, b)


def test_state_dict_round_trip():
    model, other = neck(), neck()
    model(features(batch=2))
    other.load_state_dict(model.state_dict(), strict=True)
    feats = features()
    for a, b in zip(model.eval()(feats), other.eval()(feats), strict=True):
        assert torch.equal(a, b)


def test_expansion_keeps_widths_and_weights():
    """Mutation: expand is not passed on."""
    wide, base = neck(expand=dict(tau=2)), neck()
    feats = features()
    assert [out.shape for out in wide(feats)] == [out.shape for out in base(feats)]
    for one, other in zip(wide.fpn_convs, base.fpn_convs, strict=True):
        assert one.conv.weight.numel() == other.conv.weight.numel()
        assert one.conv.weight.shape[1] == 2 * other.conv.weight.shape[1]
