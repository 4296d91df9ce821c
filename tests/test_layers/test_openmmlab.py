"""Binary layers in the hands of mmcv and mmengine: builders, initialisation, fusion with norms."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer, fuse_conv_bn
from mmengine.model import BaseModule
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

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
    """Rounding of the scaled weight in half precision is not taken for another weight."""
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


class TestAssignment:
    """``layer.weight = nn.Parameter(...)`` folds a factor per filter, and is an assignment otherwise."""

    def test_other_latents(self):
        layer = BinaryConv2d(4, 6, 3)
        new = nn.Parameter(torch.randn_like(layer.weight))
        layer.weight = new
        assert layer.weight is new
        assert layer.folded_scale is None

    def test_tying_equal_latents(self):
        """A copy's weight tied back to the original: equal numbers are an assignment, not the factor 1."""
        layer = BinaryConv2d(4, 6, 3)
        twin = copy.deepcopy(layer)
        twin.weight = layer.weight
        assert twin.weight is layer.weight
        assert twin.folded_scale is None

    def test_factor_per_filter(self):
        layer = BinaryConv2d(4, 6, 3, method='binarynet', bias=False).eval()
        x = torch.randn(1, 4, 5, 5)
        out = layer(x)
        factor = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -1.0])
        layer.weight = nn.Parameter(layer.weight * factor.view(-1, 1, 1, 1))
        torch.testing.assert_close(layer(x), out * factor.view(1, -1, 1, 1))


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
