"""Binary layers in the hands of mmcv and mmengine: builders, initialisation, fusion with norms."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer, fuse_conv_bn
from mmengine.model import BaseModule
from mmengine.model.efficient_conv_bn_eval import turn_on_efficient_conv_bn_eval
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import AdaptiveConv2d, BinaryConv2d, BinaryLinear
from bnn_plugins.layers.gates import GateConv2d

METHODS = [*list_methods(), dict(type='dorefa', w_bits=2, a_bits=2)]


def randomise(norm):
    """Statistics and an affine part far from their first values: negative, zero and large factors."""
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.1, 4)
    norm.weight.data[:2] = torch.tensor([-1.5, 0.0])
    return norm


def conv_cfg(method, **kwargs):
    return dict(type='bnn_plugins.BinaryConv2d', method=method, **kwargs)


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_build_conv_layer(method):
    layer = build_conv_layer(conv_cfg(method), 4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    assert type(layer) is BinaryConv2d
    assert isinstance(layer, nn.Conv2d)
    assert (layer.stride, layer.padding, layer.groups, layer.bias) == ((2, 2), (1, 1), 2, None)
    assert layer(torch.randn(2, 4, 8, 8)).shape == (2, 6, 4, 4)


def test_a_wrong_option_in_a_config_is_named():
    with pytest.raises(ValueError, match="did you mean 'reactnet'"):
        build_conv_layer(conv_cfg('reactnett'), 4, 6, 3)


@pytest.mark.parametrize('act_cfg', [None, dict(type='Tanh'), dict(type='LeakyReLU')])
@pytest.mark.parametrize('order', [('conv', 'norm', 'act'), ('norm', 'act', 'conv')])
def test_conv_module(act_cfg, order):
    module = ConvModule(4, 6, 3, padding=1, conv_cfg=conv_cfg('bireal', pad_value=-1), norm_cfg=dict(type='BN'),
                        act_cfg=act_cfg, order=order)
    assert type(module.conv) is BinaryConv2d
    module(torch.randn(2, 4, 9, 9)).square().mean().backward()
    assert module.conv.weight.grad.any()


def test_conv_module_with_padding_layer_is_refused_by_name():
    with pytest.raises(ValueError, match='padding_mode'):
        BinaryConv2d(4, 6, 3, padding=1, padding_mode='reflect')


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_fuse_conv_bn(method, bias):
    model = nn.Sequential(BinaryConv2d(4, 6, 3, padding=1, bias=bias, method=method), randomise(nn.BatchNorm2d(6))).eval()
    x = torch.randn(2, 4, 8, 8)
    expected = model(x)
    latents = model[0].weight.clone()
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert isinstance(fused[1], nn.Identity)
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(fused[0].weight, latents), 'latents are not touched'
    # What was fused can be stored and loaded again.
    fresh = nn.Sequential(BinaryConv2d(4, 6, 3, padding=1, bias=True, method=method), nn.Identity()).eval()
    fresh.load_state_dict(fused.state_dict(), strict=True)
    assert torch.equal(fresh(x), fused(x))
    assert torch.equal(copy.deepcopy(fused)(x), fused(x))


def test_fuse_twice():
    conv, *norms = BinaryConv2d(4, 6, 3, method='irnet'), randomise(nn.BatchNorm2d(6)), randomise(nn.BatchNorm2d(6))
    model = nn.Sequential(conv, *norms).eval()
    x = torch.randn(2, 4, 8, 8)
    fused = copy.deepcopy(model)
    for norm in fused[1:]:
        fused = nn.Sequential(fuse_conv_bn(nn.Sequential(fused[0], norm))[0])
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('method', ['binarynet', 'recu', 'bireal'])
def test_fuse_in_other_dtypes(method, dtype):
    model = nn.Sequential(BinaryConv2d(4, 6, 3, padding=1, method=method), randomise(nn.BatchNorm2d(6))).eval().to(dtype)
    x = torch.randn(2, 4, 8, 8).to(dtype)
    fused = fuse_conv_bn(copy.deepcopy(model))
    assert fused[0].folded_scale is not None
    tolerance = {torch.bfloat16: 0.1, torch.float16: 0.02, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(fused(x), model(x), rtol=tolerance, atol=tolerance)


def test_fused_gradients_reach_the_latents():
    model = nn.Sequential(BinaryConv2d(4, 6, 3, method='bireal'), randomise(nn.BatchNorm2d(6))).eval()
    fused = fuse_conv_bn(copy.deepcopy(model))
    x = torch.randn(2, 4, 8, 8)
    model(x).square().sum().backward()
    fused(x).square().sum().backward()
    torch.testing.assert_close(fused[0].weight.grad, model[0].weight.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('factor', [None, 0.5, -1.0])
def test_an_assignment_is_an_assignment(factor):
    """Also of latents that are those before, or those times a number: nothing is guessed from them."""
    layer = BinaryConv2d(4, 6, 3)
    new = nn.Parameter(torch.randn_like(layer.weight) if factor is None else factor * layer.weight.detach())
    layer.weight = new
    assert layer.weight is new
    assert layer.folded_scale is None


def test_other_weights_of_a_convolution_are_refused():
    layer, x = BinaryConv2d(4, 6, 3), torch.randn(1, 4, 5, 5)
    with pytest.raises(ValueError, match='takes its own latent weight; forward_with_norm takes a norm'):
        layer._conv_forward(x, 0.5 * layer.weight, layer.bias)


def fused_by_mmcv(layer, norm):
    return fuse_conv_bn(nn.Sequential(layer, norm))


def fused_by_torch(layer, norm):
    fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
    return nn.Sequential(fuse(layer, bn=norm))


def fused_at_each_call(layer, norm):
    return ConvModule.create_from_conv_bn(layer, norm)


FUSIONS = [fused_by_mmcv, fused_by_torch, fused_at_each_call]


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('expand', [None, dict(tau=2), dict(tau=2, style='drop_in')], ids=str)
@pytest.mark.parametrize('fusion', FUSIONS)
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_every_filter_is_folded_by_itself(method, fusion, expand, affine):
    """Filters of zeros, one or all; factors that are negative and zero; norms without an affine part."""
    torch.manual_seed(0)
    layer = BinaryConv2d(8, 8, 3, padding=1, method=method, expand=expand)
    layer.weight.data[-1] = 0
    norm = nn.BatchNorm2d(8, affine=affine)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 4)
    if affine:
        norm.weight.data = torch.tensor([-1.5, 0.0, 0.3, -0.2, 2.0, 0.7, -0.1, 0.5])
        norm.bias.data.normal_()
    model, x = nn.Sequential(layer, norm).eval(), torch.randn(2, 8, 6, 5)
    expected, latents = model(x), layer.weight.clone()
    fused = fusion(*copy.deepcopy(model)).eval()
    torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    weight = next(module for module in fused.modules() if isinstance(module, BinaryConv2d)).weight
    assert torch.equal(weight, latents)
    layer.weight.data.zero_()
    expected = model(x)
    torch.testing.assert_close(fusion(*copy.deepcopy(model)).eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_a_linear_layer_and_its_norm():
    layer, norm = BinaryLinear(8, 6, method='recu').eval(), randomise(nn.BatchNorm1d(6)).eval()
    layer.weight.data[3] = 0
    x = torch.randn(5, 8)
    torch.testing.assert_close(fused_by_torch(layer, norm)(x), norm(layer(x)), rtol=1e-4, atol=1e-4)
    assert layer.folded_scale is None, 'torch folds into a copy'


def test_torch_refuses_training():
    with pytest.raises(AssertionError, match='only for eval'):
        fuse_conv_bn_eval(BinaryConv2d(4, 6, 3), nn.BatchNorm2d(6))


def test_mmengine_cannot_trace_binary_layers():
    """It is refused by name; a float part of the same model is traced, and each norm in it folded."""
    real = nn.Sequential(nn.Conv2d(3, 4, 3), randomise(nn.BatchNorm2d(4)))
    model = nn.ModuleDict(dict(real=real, binary=nn.Sequential(BinaryConv2d(4, 6, 3), nn.BatchNorm2d(6)))).eval()
    with pytest.raises(ValueError, match=r"torch\.fx cannot follow the binary layer '0'; fold its norm once, with mmcv"):
        turn_on_efficient_conv_bn_eval(model, 'binary')
    x = torch.randn(2, 3, 6, 5)
    expected = real(x)
    turn_on_efficient_conv_bn_eval(model, ['real'])
    torch.testing.assert_close(real(x), expected, rtol=1e-4, atol=1e-4)


def test_float_layers_are_fused_as_ever():
    for fusion in FUSIONS:
        model, x = nn.Sequential(nn.Conv2d(4, 6, 3), randomise(nn.BatchNorm2d(6))).eval(), torch.randn(2, 4, 6, 5)
        torch.testing.assert_close(fusion(*copy.deepcopy(model)).eval()(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('layer', 'norm', 'sentence'), [
    (BinaryConv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), 'has no running statistics'),
    (BinaryConv2d(4, 6, 3), nn.BatchNorm2d(3), 'a norm of 3 features cannot be folded into a layer of 6 outputs'),
    (AdaptiveConv2d(4, 6, 3), nn.BatchNorm2d(6), 'the norm behind an adaptive convolution cannot be folded'),
    (GateConv2d(4, 2, 3), nn.BatchNorm2d(8), 'the gates of a recurrent cell have a norm of their own'),
], ids=lambda value: type(value).__name__)
def test_what_cannot_be_folded_is_refused(layer, norm, sentence):
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match=sentence):
        fuse_conv_bn(nn.Sequential(layer, norm))
    assert layer.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_parametrized_latents():
    """A weight that is computed anew at each access is a latent weight as any."""
    layer, x = BinaryConv2d(4, 6, 3, method='bireal'), torch.randn(1, 4, 5, 5)
    expected = layer(x)
    torch.nn.utils.parametrize.register_parametrization(layer, 'weight', nn.Identity())
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_efficient_conv_bn_eval(method, bias):
    """In evaluation, and in training with frozen norms: outputs and all gradients stay."""
    common = dict(padding=1, conv_cfg=conv_cfg(method), norm_cfg=dict(type='BN'), act_cfg=None, bias=bias)
    plain = ConvModule(4, 6, 3, **common)
    randomise(plain.bn)
    efficient = ConvModule(4, 6, 3, efficient_conv_bn_eval=True, **common)
    efficient.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(efficient.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-4)
    grads = []
    for module in (plain, efficient):
        module.train()
        module.bn.eval()
        out = module(x)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        grads.append({name: p.grad for name, p in module.named_parameters()})
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-3)
    # With the norm in training, statistics are needed and the plain way is taken.
    torch.testing.assert_close(efficient.train()(x), plain.train()(x), rtol=1e-4, atol=1e-4)


class Net(BaseModule):
    def __init__(self, method, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = BinaryConv2d(16, 32, 3, method=method)
        self.fc = BinaryLinear(256, 64, method=method)


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_init_cfg_reaches_the_latents(method):
    net = Net(method, [dict(type='Kaiming', layer='Conv2d', mode='fan_in', nonlinearity='linear', bias=0.5),
                       dict(type='Normal', layer='Linear', std=3.0, bias=-1.0)])
    net.init_weights()
    assert net.conv.weight.std().item() == pytest.approx((16 * 9) ** -0.5, rel=0.05)
    assert net.conv.bias.unique().tolist() == [0.5]
    assert net.fc.weight.std().item() == pytest.approx(3, rel=0.05)
    assert net.fc.bias.unique().tolist() == [-1]


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_pretrained_float_weights_become_latents(method, tmp_path):
    real = nn.ModuleDict(dict(conv=nn.Conv2d(16, 32, 3), fc=nn.Linear(256, 64)))
    path = str(tmp_path / 'float.pth')
    torch.save(real.state_dict(), path)
    net = Net(method, dict(type='Pretrained', checkpoint=path))
    net.init_weights()
    for name, p in real.state_dict().items():
        assert torch.equal(net.state_dict()[name], p), name


def test_a_subclass_would_lose_init_cfg():
    """Why the base must be direct. If this fails, mmengine looks deeper now and the rule can go."""

    class Deeper(BinaryConv2d):
        pass

    net = BaseModule(dict(type='Constant', layer='Conv2d', val=7))
    net.conv = Deeper(4, 4, 1)
    net.init_weights()
    assert not (net.conv.weight == 7).any()
