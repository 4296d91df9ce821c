"""Layers that train through bits: equal to torch's operators, and what takes torch's operators says why."""

import copy

import pytest
import torch
import torch.utils.checkpoint as cp
from torch import nn

from bnn_plugins import list_methods, set_progress, set_training_path, training_report
from bnn_plugins.binarize.estimators import STE
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, build_act
from bnn_plugins.layers.training import unit2d
from bnn_plugins.models import BinaryConvModule, BNNCifarResNet

THROUGH_TORCH = {
    'binaryconnect': 'real activations',
    'binarydm': 'activations of {0, 1} or several bits',
    'bit': 'a sign of its own, ElasticActivation',
    'bnext': 'weights that are no single signs',  # until its schedule is over
    'dorefa': 'activations of {0, 1} or several bits',
}


@pytest.fixture(autouse=True)
def operators():
    """Also where there is too little work for them to win."""
    with set_training_path('operators'):
        yield


class Unit(nn.Module):
    def __init__(self, method, act='hardtanh', stride=1, outputs=24, **options):
        super().__init__()
        self.conv = BinaryConv2d(24, outputs, 3, stride, 1, bias=False, method=method, **options)
        self.norm, self.act = nn.BatchNorm2d(outputs), build_act(act, outputs)
        nn.init.uniform_(self.norm.weight, -1, 1)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        return unit2d(self.conv, self.norm, self.act, x, x if self.conv.stride == (1, 1) else None)


def trained(module, x, grad=None, dtype=torch.float32, path='operators'):
    """Output, and the gradients of the input and of all parameters, after one step from the same start."""
    module, leaf = copy.deepcopy(module).to(dtype).train(), x.detach().to(dtype, copy=True).requires_grad_()
    with set_training_path(path):
        torch.manual_seed(0)
        y = module(leaf)
        y.backward(torch.ones_like(y) if grad is None else grad.to(dtype))
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    return module, {'y': y.detach(), 'x': leaf.grad} | gradients | dict(module.named_buffers())


def assert_same(module, x, bound=5e-5):
    """Training operators against torch's in float64."""
    latent = module(x).detach()
    grad = torch.randn(latent.shape)
    run, found = trained(module, x, grad)
    _, expected = trained(module, x, grad, torch.float64, 'torch')
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        elif value.is_floating_point():
            assert (found[name].double() - value).abs().amax() <= bound * max(1.0, value.abs().amax().item()), name
        else:
            assert torch.equal(found[name], value), name
    return run


@pytest.mark.parametrize('method', list_methods())
@pytest.mark.parametrize('kind', ['conv', 'linear', 'unit', 'strided unit'])
def test_every_method(method, kind):
    x = torch.randn(3, 24, 7, 6)
    modules = {'conv': lambda: BinaryConv2d(24, 16, 3, 2, 1, method=method), 'unit': lambda: Unit(method),
               'linear': lambda: BinaryLinear(24, 16, method=method),
               'strided unit': lambda: Unit(method, 'identity', 2, 40)}
    module = modules[kind]()
    set_progress(module, 0.2)
    run = assert_same(module, torch.randn(3, 5, 24) if kind == 'linear' else x)
    reason = THROUGH_TORCH.get(method)
    text = f'0 of 1 binary layers; 1 take those of torch ({reason})' if reason else '1 of 1 binary layers'
    assert training_report(run) == f'training operators: {text}'


@pytest.mark.parametrize('act', ['identity', 'hardtanh', 'relu', 'prelu', 'rprelu'])
@pytest.mark.parametrize('expand', [None, dict(tau=2), dict(tau=2, groups=2), dict(tau=4), dict(tau=2, style='drop_in')])
def test_acts_and_expansions(act, expand):
    assert_same(Unit('recu', act, 2, 32, expand=expand), torch.randn(2, 24, 8, 8))
    if expand is None:
        assert_same(Unit('reactnet', act), torch.randn(2, 24, 8, 8))


def test_an_act_that_is_another_one_runs_behind():
    unit = Unit('bireal')
    unit.act = nn.GELU()
    assert 'training operators: 1 of 1' in training_report(assert_same(unit, torch.randn(2, 24, 8, 8)))


def test_frozen_norms_and_norms_without_statistics():
    class Frozen(Unit):
        def train(self, mode=True):
            super().train(mode)
            self.norm.eval()
            return self

    unit = Frozen('binarynet').train()
    unit.norm.running_mean.normal_()
    before = unit.norm.running_mean.clone()
    run = assert_same(unit, torch.randn(2, 24, 8, 8))
    assert torch.equal(run.norm.running_mean, before)
    unit = Unit('binarynet')
    unit.norm = nn.BatchNorm2d(24, affine=False, track_running_stats=True, momentum=0.5)
    assert_same(unit, torch.randn(2, 24, 8, 8))


def refused(module, x, reason):
    module = module.train()
    module(x).sum().backward()
    assert training_report(module).endswith(f'({reason})'), training_report(module)


def test_what_takes_torch_says_why():
    x = torch.randn(2, 24, 8, 8)
    real = dict(type='reactnet', binarize_weights=False)
    refused(BinaryConv2d(24, 16, 3, method=real), x, 'weights that are no single signs')
    refused(BinaryConv2d(24, 16, 3, padding='same'), x, "padding='same'")
    refused(BinaryConv2d(24, 16, 3, dtype=torch.float64), x.double(), 'weights of torch.float64')
    hooked = BinaryConv2d(24, 16, 3)
    seen = []
    hooked.activation.register_forward_hook(lambda *args: seen.append(args))
    refused(hooked, x, 'hooks on the activation')
    assert seen
    with set_training_path('torch'):
        refused(BinaryConv2d(24, 16, 3), x, 'turned off by set_training_path')
    with set_training_path():
        refused(BinaryConv2d(24, 16, 3), x, 'too little work')
        refused(BinaryLinear(24, 16), torch.randn(5, 24), 'too little work')
        large = BinaryConv2d(64, 64, 3).train()
        large(torch.randn(4, 64, 20, 20))
        assert 'training operators: 1 of 1' in training_report(large)
    assert training_report(nn.Conv2d(1, 1, 1)) == 'training operators: no binary layer was trained yet'


def test_hooks_on_convolution_and_norm_see_their_outputs():
    for name in ('conv', 'norm', 'act'):
        unit, seen = Unit('recu').train(), []
        unit.get_submodule(name).register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        y = unit(torch.randn(2, 24, 8, 8))
        assert [out.shape for out in seen] == [y.shape]


def test_a_changed_surrogate_is_used():
    """Not the triangle of the class that it was made from."""
    class Steep(STE):
        def surrogate(self, x):
            return 3 * torch.ones_like(x)

    layer = BinaryConv2d(24, 16, 3, method=dict(type='bireal', estimator=Steep()), bias=False)
    plain = BinaryConv2d(24, 16, 3, method=dict(type='bireal', estimator='ste'), bias=False)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24, 8, 8)
    assert torch.allclose(trained(layer, x)[1]['x'], 3 * trained(plain, x)[1]['x'], atol=1e-5)


def test_evaluation_and_switches_change_nothing():
    unit = Unit('recu').eval()
    x = torch.randn(2, 24, 8, 8)
    with set_training_path('torch'):
        expected = unit(x)
    assert torch.equal(unit(x), expected)
    with pytest.raises(ValueError, match="unknown training path 'fast'"):
        set_training_path('fast')
    with pytest.raises(ValueError, match='dtype of gradients'):
        set_training_path('auto', 'float16')


@pytest.mark.parametrize('channels_last', [False, True])
def test_memory_format_is_kept(channels_last):
    x = torch.randn(2, 24, 8, 8).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    for module in (BinaryConv2d(24, 16, 3), BinaryConvModule(24, 24, 3, padding=1, norm_cfg=dict(type='BN')),
                   BNNCifarResNet(8, base_channels=8, in_channels=24)):
        y = module.train()(x)
        y = y[0] if isinstance(y, tuple) else y
        assert y.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_autocast_takes_bfloat16_gradients_and_exact_sums():
    unit, x = Unit('recu').train(), torch.randn(2, 24, 8, 8)
    expected = trained(unit, x)[1]
    with torch.autocast('cpu', torch.bfloat16):
        found = trained(unit, x)[1]
    assert torch.equal(found['y'], expected['y'])  # float32
    difference = (found['x'] - expected['x']).abs().amax()
    assert 0 < difference <= 0.03 * expected['x'].abs().amax()
    with set_training_path('auto', 'bfloat16'), torch.autocast('cpu', torch.bfloat16):
        pass
    with torch.autocast('cpu', torch.bfloat16):
        y = unit(x.bfloat16())
    assert y.dtype == torch.float32


def test_bfloat16_gradients():
    unit, x = Unit('reactnet', 'rprelu').train(), torch.randn(4, 24, 8, 8)
    expected, grad = trained(unit, x)[1], torch.randn(4, 24, 8, 8)
    expected = trained(unit, x, grad)[1]
    module = copy.deepcopy(unit).train()
    leaf = x.clone().requires_grad_()
    with set_training_path('operators', 'bfloat16'):
        y = module(leaf)
        y.backward(grad)
    assert torch.equal(y, expected['y'])
    error = (module.conv.weight.grad - expected['conv.weight']).norm() / expected['conv.weight'].norm()
    assert 0 < error < 0.01


def test_checkpointing():
    unit, x = Unit('recu').train(), torch.randn(2, 24, 8, 8)
    expected = trained(unit, x)[1]
    for reentrant in (False, True):
        leaf, module = x.clone().requires_grad_(), copy.deepcopy(unit)
        cp.checkpoint(module, leaf, use_reentrant=reentrant).sum().backward()
        assert torch.allclose(leaf.grad, expected['x'], atol=1e-6)
        assert module.norm.num_batches_tracked == 2  # as with torch's batch norm: the forward pass ran twice


def test_compiled_layers_are_traced_through_torch():
    layer = BinaryConv2d(24, 16, 3, padding=1).train()
    x = torch.randn(2, 24, 8, 8)
    explained = torch._dynamo.explain(layer)(x)
    assert explained.graph_break_count == 0


def test_constant_signs_are_refused_at_the_first_step():
    with pytest.raises(ValueError, match='never below its threshold'):
        BinaryConv2d(24, 16, 3, method='bireal').train()(torch.rand(2, 24, 8, 8))


def test_profiles_see_a_unit_as_one_binary_layer():
    unit, x = Unit('recu').train(), torch.randn(2, 24, 8, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        unit(x)
    assert any(event.key == 'kind:binary' for event in profile.key_averages())


@pytest.mark.parametrize('method', ['binarynet', 'bireal'])
def test_sums_that_int16_cannot_hold(method):
    """Sums of a norm or a scale are int16 for a while, so those of more terms are followed by torch's operators."""
    conv = BinaryConv2d(33000, 2, 1, bias=False, method=method).train()
    nn.init.ones_(conv.weight)
    x = torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1, 1).expand(3, 33000, 2, 2).contiguous(memory_format=torch.channels_last)
    y = unit2d(conv, nn.BatchNorm2d(2), None, x)
    with set_training_path('torch'):
        assert torch.allclose(y, unit2d(conv, nn.BatchNorm2d(2), None, x))
