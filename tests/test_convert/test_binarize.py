"""``binarize_``: what it changes, what it keeps, what it refuses."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnn_plugins import BNNConfig, binarize_, list_methods, pack_
from bnn_plugins.layers import BinaryConv2d, BinaryLayer, BinaryLinear

from .nets import BINARY, FLOAT, Net, SqueezeExcite, image

SIGNS = ['binarynet', 'xnor', 'bireal', 'irnet', 'recu', 'reactnet']
NO_SIGNS = ['dorefa', 'binaryconnect', dict(type='dorefa', a_bits=2)]


@pytest.fixture(params=list_methods())
def method(request):
    return request.param


def layers_of(model):
    return {name: type(module) for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and '.gain.' not in name}


def test_layers(method):
    model = Net()
    report = binarize_(model, method)
    kinds = layers_of(model)
    assert [name for name, kind in kinds.items() if issubclass(kind, BinaryLayer)] == BINARY
    assert {name for name, kind in kinds.items() if kind in (nn.Conv2d, nn.Linear)} == set(FLOAT)
    assert [row.name for row in report.rows] == list(kinds), 'every layer, in the order of the model'
    assert [row.name for row in report.binary] == BINARY
    assert [row.kind for row in report.rows] == [kind.__name__ for kind in layers_of(Net()).values()]
    model(image()).square().mean().backward()
    for name in BINARY:
        grad = model.get_submodule(name).weight.grad
        assert grad.isfinite().all(), name
        assert grad.any(), name


def test_shapes_are_taken_over():
    """Each argument of a convolution by itself: a mixed-up one would still run somewhere."""
    kwargs = dict(stride=(1, 2), padding=(2, 0), dilation=(2, 1), groups=3, bias=False)
    model = nn.ModuleDict(dict(a=nn.Conv2d(6, 9, (3, 1), **kwargs), b=nn.Conv2d(6, 9, 3, padding='same'), c=nn.Linear(6, 9),
                               d=nn.Linear(6, 9, bias=False)))
    twin = copy.deepcopy(model)
    binarize_(model, dict(method='xnor', pad_value=-1))
    for name in 'ab':
        new, old = model[name], twin[name]
        for key in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups'):
            assert getattr(new, key) == getattr(old, key), key
        assert (new.bias is None) == (old.bias is None)
        assert (new.method, new.pad_value) == ('xnor', -1)
        x = torch.randn(2, 6, 8, 9)
        assert new(x).shape == old(x).shape
    assert [(m.in_features, m.out_features, m.bias is None) for m in (model['c'], model['d'])] == [(6, 9, False), (6, 9, True)]


def test_latents_are_the_float_parameters(method):
    """The same objects: an optimizer, an EMA or a checkpoint made for the float model still fits."""
    model = Net()
    before = dict(model.named_parameters())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    binarize_(model, method)
    after = dict(model.named_parameters())
    for name, parameter in before.items():
        assert after[name] is parameter, name
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value), key
    new = [key.split('.') for key in model.state_dict() if key not in state]
    parts = {'activation', 'weight_binarizer', 'gain', 'relu'}
    assert all(parts & set(names) for names in new), 'thresholds, learned scales and slopes, and nothing else'
    model(image()).sum().backward()
    optimizer.step()
    for name in BINARY:
        assert not torch.equal(model.get_submodule(name).weight, state[f'{name}.weight'])


def test_float_checkpoint_loads_after_conversion():
    model, source = Net(), Net()
    binarize_(model, dict(method='bireal'))
    missing, unexpected = model.load_state_dict(source.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    assert torch.equal(model.neck.weight, source.neck.weight)


def test_names_of_modules_stay():
    model = Net()
    names = [name for name, _ in model.named_modules()]
    binarize_(model, 'reactnet')
    inner = ('activation', 'weight_binarizer', 'estimator')
    assert [name for name, _ in model.named_modules() if name.rpartition('.')[2] not in inner] == names


@pytest.mark.parametrize('training', [True, False])
def test_mode_is_kept(training):
    """Layer by layer: a frozen layer in a training model stays in evaluation mode."""
    model = Net().train(training)
    model.layer1[1].train(not training)
    before = {name: module.training for name, module in model.named_modules()}
    binarize_(model, 'recu')
    assert {name: model.get_submodule(name).training for name in before} == before
    for name in BINARY:
        layer = model.get_submodule(name)
        assert {m.training for m in layer.modules()} == {layer.training}


def test_frozen_parameters_stay_frozen():
    model = Net()
    model.layer1.requires_grad_(False)
    binarize_(model, 'bireal')
    assert not any(p.requires_grad for p in model.layer1.parameters())
    assert model.neck.weight.requires_grad


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_is_kept(method, dtype):
    model = Net().to(dtype)
    binarize_(model, method)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == dtype or not tensor.is_floating_point(), name
    if dtype != torch.float16:
        out = model(image(dtype=dtype))
        assert out.dtype == dtype
        out.sum().backward()


def test_device_is_kept(method):
    model = Net().to('meta')
    binarize_(model, method)
    assert {p.device.type for p in model.parameters()} == {'meta'}
    assert {b.device.type for b in model.buffers()} == {'meta'}


class TestRefusals:
    @pytest.mark.parametrize('layer', [nn.Conv2d(8, 8, 3), nn.Linear(8, 8), BinaryConv2d(8, 8, 3)],
                             ids=lambda layer: type(layer).__name__)
    def test_bare_layer(self, layer):
        with pytest.raises(ValueError, match=r'for a single .* build the binary layer itself'):
            binarize_(layer, 'bireal')

    @pytest.mark.parametrize('model', [nn.Sequential(nn.ReLU()), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
                                       nn.ModuleDict(dict(fc=nn.Linear(4, 4))), nn.Sequential(nn.ConvTranspose3d(8, 8, 3))],
                             ids=str)
    def test_nothing_becomes_binary(self, model):
        before = str(model)
        with pytest.raises(ValueError, match=r'nothing in this (Sequential|ModuleDict) became binary'):
            binarize_(model, 'bireal')
        assert str(model) == before

    def test_nothing_becomes_binary_gives_the_reasons(self):
        with pytest.raises(ValueError, match=r'reads the image \(3 channels\)') as error:
            binarize_(nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(50)]), 'bireal')
        assert '\n' not in str(error.value), 'a sentence, no table of all layers'
        assert len(str(error.value)) < 300

    def test_packed_model(self):
        model = Net()
        binarize_(model, dict(method='bireal', rules={'*': 'binary'}))
        with pytest.raises(ValueError, match='became binary'):
            binarize_(pack_(model), 'bireal')

    @pytest.mark.parametrize('cfg', [dict(method='dorefa', pad_value=1), dict(method=dict(type='dorefa', w_bits=12)),
                                     dict(metod='bireal'), 'birael', dict(rules={'nothing': 'float'})], ids=str)
    def test_a_refused_config_leaves_the_model_alone(self, cfg):
        model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 8, 3, padding=1))
        with pytest.raises(ValueError, match=r'pad_value|bits|did you mean|matches no'):
            binarize_(model, cfg)
        assert [type(layer) for layer in model] == [nn.Linear, nn.Conv2d]


def test_config_in_every_form():
    texts = set()
    for cfg in (BNNConfig('irnet'), dict(method='irnet'), 'irnet'):
        model = Net()
        binarize_(model, cfg)
        texts.add(str(model))
    assert len(texts) == 1


def test_second_call_is_harmless(method):
    model = Net()
    first = binarize_(model, method)
    before = dict(model.named_modules())
    second = binarize_(model, 'xnor')
    assert dict(model.named_modules()) == before, 'the same objects: no layer is made again, no activation replaced again'
    assert {row.name: row.reason for row in second.binary} == dict.fromkeys(BINARY, 'binary already')
    assert [row.binary for row in second.rows] == [row.binary for row in first.rows]
    assert not second.replaced


class TestActivations:
    @pytest.mark.parametrize('method', SIGNS)
    def test_replaced_for_signs(self, method):
        model = Net()
        report = binarize_(model, method)
        assert set(report.replaced) == {'relu', 'layer1.0.relu'}
        expected = dict(xnor=nn.PReLU, reactnet=nn.PReLU).get(method, nn.Hardtanh)
        assert type(model.relu) is type(model.layer1[0].relu) is expected
        assert type(model.layer1[0].se.act) is nn.ReLU, 'channel attention keeps its own'
        assert report.replaced['layer1.0.relu'] == f'ReLU6 -> {expected.__name__}: a sign behind it would always be +1'

    @pytest.mark.parametrize('method', NO_SIGNS, ids=str)
    def test_kept_without_signs(self, method):
        model = Net()
        report = binarize_(model, dict(method=method, act='hardtanh'))
        assert not report.replaced
        assert type(model.relu) is nn.ReLU
        assert type(model.layer1[0].relu) is nn.ReLU6

    def test_keep(self):
        model = Net()
        assert not binarize_(model, dict(method='bireal', act='keep')).replaced
        assert type(model.relu) is nn.ReLU
        with pytest.raises(ValueError, match='never below its threshold'):
            model(image(2, 3, 32, 32))

    @pytest.mark.parametrize(('act', 'kind'), [('hardtanh', nn.Hardtanh), ('identity', nn.Identity), ('prelu', nn.PReLU)])
    def test_act(self, act, kind):
        model = Net()
        binarize_(model, dict(method='reactnet', act=act))
        assert type(model.relu) is kind
        if act == 'prelu':
            assert model.relu.weight.shape == (1,), 'a ReLU does not know its channels'

    def test_others_are_kept(self):
        acts = [nn.PReLU(), nn.LeakyReLU(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.Hardswish(), nn.Tanh()]
        model = nn.Sequential(nn.Conv2d(8, 8, 3), *acts)
        assert not binarize_(model, 'bireal').replaced
        assert list(model)[1:] == acts

    def test_own_activation_objects(self):
        """Slopes are learned one by one: two places do not share one."""
        model = Net()
        binarize_(model, 'reactnet')
        assert model.relu is not model.layer1[0].relu


class TestSharedModules:
    def test_one_convolution_under_several_names(self):
        """As the heads of RTMDet share theirs: every name must become binary, and stay one layer."""
        conv = nn.Conv2d(8, 8, 3, padding=1)
        model = nn.ModuleDict(dict(a=conv, b=nn.Sequential(conv, nn.BatchNorm2d(8), conv), c=nn.Conv2d(8, 8, 1)))
        report = binarize_(model, 'bireal')
        assert type(model['a']) is BinaryConv2d
        assert model['a'] is model['b'][0] is model['b'][2]
        assert model['a'].weight is conv.weight
        assert [row.name for row in report.rows] == ['a', 'c'], 'one layer, one row'
        assert model['c'] is not model['a']

    def test_one_convolution_twice_in_one_sequence(self):
        conv = nn.Conv2d(8, 8, 1)
        model = nn.Sequential(conv, nn.BatchNorm2d(8), conv)
        binarize_(model, 'recu')
        assert type(model[2]) is BinaryConv2d
        model(image(2, 8, 5, 5)).sum().backward()
        assert conv.weight.grad.any()

    def test_one_relu_under_several_names(self):
        relu = nn.ReLU()
        model = nn.Sequential(nn.Conv2d(8, 8, 1), relu, nn.Conv2d(8, 8, 1), relu)
        report = binarize_(model, 'bireal')
        assert list(report.replaced) == ['1']
        assert type(model[1]) is nn.Hardtanh
        assert model[3] is model[1]

    def test_tied_parameters_stay_tied(self):
        model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
        model[1].weight = model[0].weight
        binarize_(model, 'bireal')
        assert model[0].weight is model[1].weight

    def test_heads_of_mmdet(self):
        heads = pytest.importorskip('mmdet.models.dense_heads')
        head = heads.RTMDetSepBNHead(num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1, share_conv=True,
                                     anchor_generator=dict(type='mmdet.MlvlPointGenerator', offset=0, strides=[8, 16]),
                                     bbox_coder=dict(type='mmdet.DistancePointBBoxCoder'), norm_cfg=dict(type='BN'),
                                     loss_cls=dict(type='mmdet.QualityFocalLoss', use_sigmoid=True),
                                     loss_bbox=dict(type='mmdet.GIoULoss'), with_objectness=False,
                                     loss_centerness=dict(type='mmdet.CrossEntropyLoss'))
        binarize_(head, 'bireal')
        kinds = [type(module) for name, module in head.named_modules(remove_duplicate=False) if name.endswith('.conv')]
        assert kinds
        assert set(kinds) == {BinaryConv2d}


def test_nested_sequential():
    model = nn.Sequential(nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.ReLU()), nn.Linear(8, 8))
    report = binarize_(model, 'bireal')
    assert [row.name for row in report.binary] == ['0.0.0', '1']
    assert type(model[0][0][0]) is type(model[1]) is BinaryLinear
    assert type(model[0][1]) is nn.Hardtanh


def test_names_with_brackets_and_lists():
    model = nn.ModuleDict({'[a]': nn.ModuleList([nn.Linear(8, 8)]), 'b': nn.Linear(8, 8)})
    binarize_(model, 'bireal')
    assert type(model['[a]'][0]) is BinaryLinear


@st.composite
def networks(draw):
    """A float CNN as nested sequences: blocks of convolution, norm, activation, pooling; a head."""
    channels, blocks = draw(st.integers(1, 6)), []
    for _ in range(draw(st.integers(1, 4))):
        groups = draw(st.integers(1, 3))
        inputs, channels = channels, groups * draw(st.integers(1, 4))
        kernel = draw(st.sampled_from([1, 3, (1, 3), 2]))
        conv = nn.Conv2d(inputs, channels, kernel, padding=draw(st.integers(1, 2)), bias=draw(st.booleans()),
                         groups=groups if inputs % groups == 0 else 1, padding_mode=draw(st.sampled_from(['zeros', 'zeros',
                                                                                                          'reflect'])))
        act = draw(st.sampled_from([nn.ReLU, nn.ReLU6, nn.PReLU, nn.SiLU, nn.Identity]))()
        block = nn.Sequential(conv, nn.BatchNorm2d(channels), act)
        blocks.append(nn.Sequential(block, SqueezeExcite(channels)) if draw(st.booleans()) else block)
    return nn.Sequential(nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, 12),
                         nn.Linear(12, 4))


@settings(max_examples=40)
@given(model=networks(), method=st.sampled_from(list_methods()), pad_value=st.sampled_from([-1, 0, 1]),
       seed=st.integers(0, 99))
def test_any_network(model, method, pad_value, seed):
    torch.manual_seed(seed)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    state = copy.deepcopy(model.state_dict())
    twin = copy.deepcopy(model)
    pad_value = 0 if method in ('dorefa', 'binaryconnect') else pad_value
    report = binarize_(model, dict(method=method, pad_value=pad_value))
    x = image(2, first.in_channels, 9, 8)
    out = model(x)
    assert out.shape == twin(x).shape
    out.square().mean().backward()
    assert [(row.name, row.binary) for row in report.rows] == [
        (name, isinstance(module, BinaryLayer)) for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and '.gain.' not in name]
    assert {'3', '4'} <= {row.name for row in report.rows}
    for row in report.rows:
        layer = model.get_submodule(row.name)
        assert row.parameters == layer.weight.numel()
        assert layer.weight.grad.isfinite().all()
        assert torch.equal(layer.weight, state[f'{row.name}.weight'])
    assert state.keys() <= model.state_dict().keys()
    if method not in ('dorefa', 'binaryconnect'):
        relus = {name for name, module in model.named_modules() if isinstance(module, nn.ReLU | nn.ReLU6)}
        assert all(name.endswith('1.act') for name in relus), 'channel attention only'
    model.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(pack_(model)(x), expected)


class TestExpand:
    """expand= of the config: each layer by itself, outer widths kept, every decision in the report."""

    @staticmethod
    def net():
        return nn.ModuleDict(dict(wide=nn.Conv2d(8, 12, 3, padding=1), odd=nn.Conv2d(12, 9, 1),
                                  grouped=nn.Conv2d(9, 6, 3, groups=3), lin=nn.Linear(6, 8, bias=False)))

    def test_layers(self):
        model, twin = self.net(), self.net()
        model.load_state_dict(twin.state_dict())
        report = binarize_(model, dict(method='bireal', expand=dict(tau=2, spread=0.3)))
        reasons = {row.name: row.reason for row in report.rows}
        assert reasons == dict(wide='default; expand tau 2 groups 1 drop_in', lin='default; expand tau 2 groups 1 drop_in',
                               odd='default; not expanded: 9 outputs are not divisible by 2',
                               grouped='default; not expanded: 3 groups of its own')
        x = torch.randn(2, 8, 6, 6)
        for name in ('wide', 'odd', 'grouped'):
            old = twin[name](x)
            assert model[name](x).shape == old.shape
            x = old
        assert model['wide'].weight.shape == (6, 16, 3, 3)
        assert torch.equal(model['wide'].weight.flatten(), twin['wide'].weight.flatten())
        assert torch.equal(model['wide'].bias, twin['wide'].bias)
        assert model['wide'].copy_shift.tolist() == pytest.approx([-0.3] * 8 + [0.3] * 8)
        assert model['lin'].weight.shape == (4, 12)
        assert model['odd'].expand is None
        assert model['odd'].weight.shape == (9, 12, 1, 1)

    @pytest.mark.parametrize('frozen', [True, False])
    def test_what_was_frozen_stays_frozen(self, frozen):
        """Also where a layer gets new parameters, because an expanded one has its weights in another shape."""
        model = self.net().requires_grad_(not frozen)
        binarize_(model, dict(method='bireal', expand=dict(tau=2)))
        assert model['wide'].expand is not None
        for name, layer in model.items():
            assert layer.weight.requires_grad is not frozen, name
            assert layer.bias is None or layer.bias.requires_grad is not frozen, name

    def test_two_groups_of_its_own(self):
        model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2))
        row, = binarize_(model, dict(method='bireal', expand=dict(tau=2))).rows
        assert row.reason == 'default; not expanded: 2 groups of its own'

    def test_groups(self):
        model = self.net()
        reasons = {row.name: row.reason for row in binarize_(model, dict(expand=dict(tau=1, groups=3))).rows}
        assert model['wide'].weight.shape == (12, 8, 3, 3)
        assert reasons['lin'].endswith('; not expanded: a linear layer has no groups')

    def test_tau_1_is_no_expansion(self):
        model = self.net()
        report = binarize_(model, dict(expand=dict(tau=1)))
        assert all('expand' not in row.reason for row in report.rows)
        assert all(layer.expand is None for layer in model.values())
