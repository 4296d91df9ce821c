"""One packed layer against its latent twin: equal to the last bit, over all methods, shapes and awkward values."""

import copy
import io
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bnn_plugins import pack_
from bnn_plugins.binarize import DoReFaWeight
from bnn_plugins.binarize.activations import DoReFaActivation
from bnn_plugins.deploy import PackedConv2d, PackedLinear, packed
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .nets import METHODS, SIGNED, is_signed, randomise_, special_

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

CONVS = {  # arguments and the size of the image
    'plain': (dict(in_channels=33, out_channels=7, kernel_size=3, padding=1), (7, 5)),
    'strided': (dict(in_channels=6, out_channels=5, kernel_size=(3, 5), stride=(2, 3), padding=(2, 1), bias=False), (8, 11)),
    'dilated': (dict(in_channels=5, out_channels=4, kernel_size=3, dilation=(2, 1), padding=(2, 0)), (9, 6)),
    'grouped': (dict(in_channels=12, out_channels=8, kernel_size=3, groups=4, padding=1), (5, 6)),
    'depthwise': (dict(in_channels=5, out_channels=5, kernel_size=3, groups=5, padding=2, dilation=2), (6, 5)),
    'wide_groups': (dict(in_channels=70, out_channels=4, kernel_size=1, groups=2, bias=False), (3, 4)),
    'pointwise': (dict(in_channels=64, out_channels=6, kernel_size=1), (4, 5)),
    'pointwise_padded': (dict(in_channels=4, out_channels=6, kernel_size=1, padding=1, bias=False), (4, 5)),
    'row': (dict(in_channels=9, out_channels=3, kernel_size=(1, 3), padding=(0, 1)), (4, 7)),
    'large': (dict(in_channels=3, out_channels=4, kernel_size=5, padding=2), (6, 9)),
    'same': (dict(in_channels=4, out_channels=4, kernel_size=3, padding='same', dilation=2), (7, 6)),
    'same_even': (dict(in_channels=4, out_channels=4, kernel_size=(2, 4), padding='same'), (7, 6)),
    'valid': (dict(in_channels=4, out_channels=4, kernel_size=3, padding='valid', stride=2), (7, 6)),
    'one_channel': (dict(in_channels=1, out_channels=1, kernel_size=3, padding=1), (3, 3)),
    'pre_norm': (dict(in_channels=6, out_channels=4, kernel_size=3, padding=1, pre_norm=True), (5, 7)),
}


def threshold_of(layer):
    threshold = layer.activation.threshold() if layer.activation.signed else None
    return None if threshold is None else threshold.detach()


def build_conv(method, pad_value, batch=2, **kwargs):
    height, width = kwargs.pop('size')
    layer = randomise_(BinaryConv2d(**kwargs, method=method, pad_value=pad_value)).eval()
    return layer, special_(torch.randn(batch, kwargs['in_channels'], height, width), threshold_of(layer))


def build_linear(method, shape=(3, 4), features=(37, 6), bias=True):
    layer = randomise_(BinaryLinear(*features, bias, method=method)).eval()
    return layer, special_(torch.randn(*shape, features[0]), threshold_of(layer), -1)


def accumulators(layer, x):
    """The sums of levels in float64, from a latent layer: signs by comparison, taps by ``F.conv2d``."""
    if isinstance(layer, BinaryConv2d) and layer.pre_norm is not None:
        x = layer.pre_norm(x)
    x = layer.activation.prepare(x).double()
    if layer.activation.signed:
        threshold = threshold_of(layer)
        threshold = 0 if threshold is None else threshold.double()
        if layer.channel_dim == 1 and isinstance(threshold, torch.Tensor):
            threshold = threshold.view(-1, 1, 1)
        levels = torch.where(x >= threshold, 1.0, -1.0).double()
    else:
        levels = layer.activation(x.float()).double()
    weight = layer.weight_binarizer(layer.weight)[0].detach().double()
    if isinstance(layer, BinaryLinear):
        return F.linear(levels, weight).round().to(torch.int32)
    levels = F.pad(levels, layer._reversed_padding_repeated_twice, value=float(layer.pad_value))
    return torch.cat([F.conv2d(levels, basis, None, layer.stride, 0, layer.dilation, layer.groups)
                      for basis in weight.chunk(layer.bases)], 1).round().to(torch.int32)


@torch.no_grad()
def check(layer, x, integers=True):
    """Pack a copy and compare everything."""
    expected = layer(x)
    packed = pack_(copy.deepcopy(layer))
    out = packed(x)
    assert out.dtype == expected.dtype
    assert out.shape == expected.shape
    assert torch.equal(out, expected)
    assert out.stride() == expected.stride()
    if integers and layer.activation.bits < 32:
        acc = packed._accumulate(packed.pre_norm(x) if getattr(packed, 'pre_norm', None) is not None else x)
        assert acc.dtype == torch.int32
        assert torch.equal(acc, accumulators(layer, x))
    return packed


@pytest.mark.parametrize('kind', CONVS)
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_convolution(method, kind):
    kwargs, size = CONVS[kind]
    for pad_value in (-1, 0, 1) if is_signed(method) else (0,):
        check(*build_conv(method, pad_value, size=size, **kwargs))


@pytest.mark.parametrize('shape', [(3, 4), (5,), (), (2, 1, 3)], ids=str)
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_linear(method, shape):
    for features, bias in (((37, 6), True), ((64, 3), False), ((1, 1), True)):
        check(*build_linear(method, shape, features, bias))


@pytest.mark.parametrize('w_bits', [2, 3, 8])
@pytest.mark.parametrize('method', ['reactnet', 'binarynet', 'binaryconnect', dict(type='dorefa', a_bits=2)], ids=str)
def test_bits_of_weights_with_any_activation(method, w_bits):
    """Methods to come may have k-bit weights with signs or with real activations."""
    for build in (build_conv, build_linear):
        kwargs = dict(pad_value=0, in_channels=9, out_channels=6, kernel_size=3, padding=1, size=(5, 4))
        layer, x = build(method, **kwargs if build is build_conv else {})
        layer.weight_binarizer = DoReFaWeight(w_bits)
        assert check(layer, x).w_bits == w_bits


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 4)] * 2), st.sampled_from(['same', 'valid'])))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    return dict(in_channels=groups * draw(st.integers(1, 35)), out_channels=groups * draw(st.integers(1, 3)),
                kernel_size=kernel, stride=(1, 1) if padding == 'same' else draw(st.tuples(*[st.integers(1, 3)] * 2)),
                padding=padding, dilation=dilation, groups=groups, bias=draw(st.booleans()), pre_norm=draw(st.booleans()),
                size=tuple(e + draw(st.integers(0, 4)) for e in extent), batch=draw(st.integers(1, 2)))


@settings(max_examples=120)
@given(spec=convolutions(), method=st.sampled_from(METHODS), pad_value=st.sampled_from([-1, 0, 1]), seed=st.integers(0, 99),
       channels_last=st.booleans())
def test_any_convolution(spec, method, pad_value, seed, channels_last):
    torch.manual_seed(seed)
    layer, x = build_conv(method, pad_value if is_signed(method) else 0, **spec)
    check(layer, x.to(memory_format=torch.channels_last) if channels_last else x)


@settings(max_examples=40)
@given(method=st.sampled_from(METHODS), shape=st.lists(st.integers(0, 3), max_size=3), features=st.integers(1, 70),
       outputs=st.integers(1, 5), bias=st.booleans(), seed=st.integers(0, 99))
def test_any_linear(method, shape, features, outputs, bias, seed):
    torch.manual_seed(seed)
    check(*build_linear(method, tuple(shape), (features, outputs), bias))


@pytest.mark.parametrize('kind', ['conv', 'linear'])
def test_exactly_at_the_threshold(kind):
    """Every input is the threshold or its next neighbour below: off by one rounding or by a sign of zero and all flips."""
    for below in (False, True):
        if kind == 'conv':
            layer, x = build_conv('reactnet', 0, in_channels=40, out_channels=3, kernel_size=1, size=(4, 4))
            x = threshold_of(layer).view(1, -1, 1, 1).expand_as(x)
        else:
            layer, x = build_linear('reactnet', (5,), (40, 3))
            x = threshold_of(layer).expand_as(x)
        x = x.nextafter(torch.tensor(-torch.inf)) if below else x
        packed = check(layer, x)
        levels = layer.activation(x)
        assert (levels == (-1 if below else 1)).all()
        assert torch.equal(packed.activation.threshold(), layer.activation.threshold())


@pytest.mark.parametrize('w_bits', [1, 2, 7])
@pytest.mark.parametrize('conv', CONVS)
def test_planes_and_bytes_have_the_same_sums(conv, w_bits, monkeypatch):
    kwargs, size = CONVS[conv]
    method = dict(type='dorefa', w_bits=w_bits, a_bits=3)
    layers = build_conv(method, 0, size=size, **kwargs), build_linear(method)
    for (layer, x), a_bits in itertools.product(layers, (2, 4, 8)):
        layer.activation = DoReFaActivation(a_bits)
        result = pack_(nn.Sequential(layer))[0]
        assert packed.in_bytes(result, result.activation, x)
        in_bytes = result._accumulate(x)
        with monkeypatch.context() as patch:
            patch.setattr(packed, 'in_bytes', lambda *_: False)
            assert torch.equal(result._accumulate(x), in_bytes)
        assert in_bytes.dtype == torch.int32


def test_when_levels_are_no_bytes():
    x, layer = torch.zeros(1, 8), build_linear(dict(type='dorefa', w_bits=2, a_bits=3))[0]
    small = pack_(nn.Sequential(layer))[0]
    assert packed.in_bytes(small, small.activation, x)
    assert not packed.in_bytes(small, small.activation, x.to('meta')), 'planes on other devices'
    for change in (dict(fan_in=2**16 + 1), dict(bases=2), dict(weight_bits=torch.zeros(8, 6, 2))):
        other = copy.deepcopy(small)
        vars(other).update(change)
        assert not packed.in_bytes(other, other.activation, x), change
    wide = copy.deepcopy(small)
    vars(wide).update(fan_in=2**16, weight_bits=torch.zeros(6, 6, 2))
    assert not packed.in_bytes(wide, DoReFaActivation(3), x), 'a float32 does not hold 2**16 * 7 * 63'


@pytest.mark.parametrize('value', [0.0, -0.0, 1e-45, -1e-45, 1e38, -1e38, float('inf'), float('-inf')])
@pytest.mark.parametrize('method', ['binarynet', 'reactnet', dict(type='dorefa', a_bits=2)], ids=str)
def test_single_values(method, value):
    layer = BinaryConv2d(8, 4, 3, padding=1, method=method).eval()
    check(layer, torch.full((1, 8, 4, 5), value))
    check(BinaryLinear(8, 4, method=method).eval(), torch.full((2, 8), value))


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_latents_that_are_zero(method):
    """sign(0) = +1 for weights, of both signs of zero, and a filter of zeros only."""
    layer, x = build_conv(method, 0, in_channels=5, out_channels=4, kernel_size=3, padding=1, size=(5, 6))
    layer.weight.data[0] = 0.0
    layer.weight.data[1] = -0.0
    layer.weight.data[2, ::2] = 0.0
    check(layer, x)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_folded_norms(method, bias):
    """mmcv's ``fuse_conv_bn`` with negative, zero and positive factors, once and twice; the fused net is packed."""
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    layer, x = build_conv(method, 0, in_channels=6, out_channels=5, kernel_size=3, padding=1, bias=bias, size=(6, 5))
    norms = randomise_(nn.Sequential(nn.BatchNorm2d(5), nn.BatchNorm2d(5)))
    norms[0].weight.data[0], norms[1].weight.data[0] = -0.7, 0.9  # one factor is negative, once and twice
    unfused = nn.Sequential(layer, *norms).eval()
    expected = unfused(x)
    once = fuse_conv_bn(nn.Sequential(copy.deepcopy(layer), norms[0]).eval())[0]
    twice = fuse_conv_bn(nn.Sequential(copy.deepcopy(once), norms[1]).eval())[0]
    for fused in (once, twice):
        assert (fused.folded_scale < 0).any()
        packed = check(fused, x)
        assert torch.equal(packed.folded_scale, fused.folded_scale)
    torch.testing.assert_close(packed(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_other_dtypes(method, dtype):
    """Output dtype and every rounding of the latent layer. (Sums stay below 256, which bfloat16 holds exactly.)"""
    layer, _ = build_conv(method, 0, in_channels=9, out_channels=5, kernel_size=3, padding=1, size=(5, 6))
    layer.to(dtype)
    check(layer, special_(torch.randn(2, 9, 5, 6, dtype=dtype), threshold_of(layer)), integers=False)
    layer, _ = build_linear(method)
    layer.to(dtype)
    check(layer, special_(torch.randn(2, 37, dtype=dtype), threshold_of(layer), -1), integers=False)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('method', METHODS, ids=str)
def test_half_precision_inputs_of_a_float32_layer(method, dtype):
    """As under autocast. Sums are large and odd, so that each rounding in half precision shows."""
    for layer, _ in (build_conv(method, 0, in_channels=999, out_channels=5, kernel_size=3, size=(5, 5)),
                     build_linear(method, features=(4001, 5))):
        layer.weight.data.abs_()
        x = torch.randn(2, *((999, 5, 5) if layer.channel_dim == 1 else (4001,))).add(3).to(dtype)
        check(layer, x, integers=False)
        with torch.autocast('cpu', torch.bfloat16):
            check(layer, x, integers=False)


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_channels_last(method):
    for kind in ('plain', 'strided', 'grouped', 'same_even', 'pre_norm'):
        kwargs, size = CONVS[kind]
        layer, x = build_conv(method, 0, size=size, **kwargs)
        packed = check(layer, x.to(memory_format=torch.channels_last))
        out = packed(x.to(memory_format=torch.channels_last))
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert packed(x).is_contiguous()
        check(layer, x[..., ::2])
        check(layer, x.transpose(2, 3))


@pytest.mark.parametrize('shape', itertools.product((1, 2), (1, 3), (1, 4), (1, 5)), ids=str)
def test_memory_format_where_it_is_ambiguous(shape):
    """Dimensions of one element: only the strides tell, and float layers behind follow them."""
    layer = pack_(BinaryConv2d(shape[1], 2, 1))
    real = nn.Conv2d(shape[1], 2, 1)
    n, c, h, w = shape
    for x in (torch.randn(shape), torch.randn(n, h, w, c).permute(0, 3, 1, 2), torch.randn(c, n, h, w).transpose(0, 1),
              torch.randn(n, c, w, h).transpose(2, 3), torch.randn(n, w, h, c).permute(0, 3, 2, 1)):
        assert layer(x).stride() == real(x).stride(), x.stride()


def test_empty_batch():
    layer, x = build_conv('reactnet', 0, in_channels=4, out_channels=5, kernel_size=3, size=(5, 5))
    assert pack_(layer)(x[:0]).shape == (0, 5, 3, 3)


@pytest.mark.parametrize('method', METHODS, ids=str)
class TestContent:
    def layers(self, method):
        yield build_conv(method, 0, in_channels=40, out_channels=6, kernel_size=3, padding=1, size=(5, 4))
        yield build_linear(method, (3,), (40, 6))

    def test_no_latents_remain(self, method):
        for layer, x in self.layers(method):
            latent, bits = layer.weight, layer.w_bits
            packed = pack_(layer)
            assert (packed.weight_bits.device, packed.training) == (latent.device, False)
            assert not isinstance(packed, nn.Conv2d | nn.Linear | BinaryConv2d | BinaryLinear)
            assert type(packed) is (PackedConv2d if x.ndim == 4 else PackedLinear)
            for name in ('weight', 'weight_binarizer'):
                assert not hasattr(packed, name)
            tensors = [*packed.state_dict().values(), *vars(packed).values()]
            assert not any(isinstance(t, torch.Tensor) and t.data_ptr() == latent.data_ptr() for t in tensors)
            assert latent.shape not in [t.shape for t in packed.state_dict().values()]
            words = packed.weight_bits
            assert words.dtype == torch.int32
            assert words.numel() == bits * 6 * 2 * (9 if x.ndim == 4 else 1), 'two words for 40 channels'
            assert packed.w_bits == bits
            kept = {'weight_bits', 'weight_scale', 'bias', 'activation.shift', 'activation.size'}
            assert {name for name in packed.state_dict() if not name.startswith('gain.')} <= kept

    def test_nothing_to_train(self, method):
        for layer, x in self.layers(method):
            packed = pack_(layer.train())
            assert not any(p.requires_grad for p in packed.parameters())
            assert not any(b.requires_grad for b in packed.buffers())
            assert not any(module.training for module in packed.modules())
            assert not packed(x).requires_grad

    def test_copies(self, method):
        """deepcopy, pickle and a state dict without pickled code."""
        for layer, x in self.layers(method):
            fresh = type(layer)(*((40, 6, 3, 1, 1) if x.ndim == 4 else (40, 6)), method=method)
            again = copy.deepcopy(fresh)
            packed = pack_(layer)
            expected = packed(x)
            twin = copy.deepcopy(packed)
            packed.weight_bits.zero_()
            assert torch.equal(twin(x), expected), 'a copy has bits of its own'
            assert torch.equal(pickle.loads(pickle.dumps(twin))(x), expected)
            file = io.BytesIO()
            torch.save(twin.state_dict(), file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
            for strict in (True, False):
                with pytest.raises(ValueError, match=r"weights of a packed model, but the layer '' is latent: load"):
                    fresh.load_state_dict(state, strict=strict)
            again = pack_(again)
            again.load_state_dict(state)
            assert torch.equal(again(x), expected)

    def test_printed(self, method):
        for layer, _ in self.layers(method):
            packed = pack_(layer)
            assert f'weight bits {packed.w_bits}' in repr(packed)
            assert packed.signature() in repr(packed)


def test_refusals():
    with pytest.raises(ValueError, match=r'this Sequential has no binary layer: binarize_ it first'):
        pack_(nn.Sequential(nn.Conv2d(8, 8, 3)))
    with pytest.raises(ValueError, match='this Conv2d has no binary layer'):
        pack_(nn.Conv2d(8, 8, 3))
    for model in (nn.Sequential(BinaryConv2d(8, 8, 3)), BinaryLinear(8, 8)):
        model = pack_(model)
        with pytest.raises(ValueError, match=f'this {type(model).__name__} is packed already'):
            pack_(model)


def test_pack_of_a_partly_packed_model():
    model = nn.Sequential(BinaryLinear(8, 8), BinaryLinear(8, 8)).eval()
    x = torch.randn(3, 8)
    expected = model(x)
    model[0] = pack_(model[0])
    assert torch.equal(model(x), expected)
    pack_(model)
    assert [type(layer) for layer in model] == [PackedLinear, PackedLinear]
    assert torch.equal(model(x), expected)


def test_shared_layer_is_packed_once():
    conv = BinaryConv2d(8, 8, 3, padding=1)
    model = nn.ModuleList([conv, nn.Sequential(conv)]).eval()
    x = torch.randn(1, 8, 5, 5)
    expected = conv(conv(x))
    pack_(model)
    assert model[0] is model[1][0]
    assert torch.equal(model[1](model[0](x)), expected)


def test_training_noise_does_not_reach_the_bits():
    """Stochastic BinaryConnect draws in training; a packed layer has the signs of its latents."""
    layer = BinaryLinear(64, 8, method=dict(type='binaryconnect', stochastic=True)).train()
    x = torch.randn(3, 64)
    expected = copy.deepcopy(layer).eval()(x)
    assert torch.equal(pack_(layer)(x), expected)


def test_unbatched_image_is_refused():
    layer = pack_(BinaryConv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r'\[N, C, H, W\]'):
        layer(torch.randn(4, 5, 5))


class TestSignature:
    """Two layers have one signature exactly when the same bits mean the same in both."""

    BASE = dict(in_channels=8, out_channels=8, kernel_size=3, stride=1, padding=1, dilation=1, groups=1, pad_value=0,
                method='bireal')
    OTHERS = dict(in_channels=16, out_channels=4, kernel_size=(3, 1), stride=2, padding=0, dilation=2, groups=2, pad_value=1,
                  method='reactnet')

    def test_every_attribute_counts(self):
        signatures = {pack_(BinaryConv2d(**self.BASE)).signature()}
        for key, value in self.OTHERS.items():
            signatures.add(pack_(BinaryConv2d(**{**self.BASE, key: value})).signature())
        assert len(signatures) == 1 + len(self.OTHERS)

    def test_same_however_it_is_written(self):
        kwargs = {**self.BASE, 'kernel_size': (3, 3), 'stride': [1, 1], 'padding': (1, 1)}
        assert pack_(BinaryConv2d(**kwargs)).signature() == pack_(BinaryConv2d(**self.BASE)).signature()

    def test_order_of_options(self):
        """mmengine sorts the keys of a dict when it writes a config; the file must still fit."""
        options = dict(type='dorefa', w_bits=2, a_bits=3)
        signatures = {pack_(BinaryLinear(4, 4, method=dict(items))).signature()
                      for items in itertools.permutations(options.items())}
        assert len(signatures) == 1
        assert pack_(BinaryLinear(4, 4, method=dict(options, a_bits=4))).signature() not in signatures


@pytest.mark.parametrize('method', SIGNED[:1] + METHODS[-1:] + ['reactnet', dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
def test_compile(method):
    torch._dynamo.reset()
    conv, x = build_conv(method, 0, in_channels=6, out_channels=5, kernel_size=3, padding=1, size=(6, 5))
    linear, y = build_linear(method, (2, 3))
    for layer, value in ((pack_(conv), x), (pack_(linear), y)):
        compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
        with torch.no_grad():
            assert torch.equal(compiled(value), layer(value))
    torch._dynamo.reset()


def test_latents_and_bits_agree_after_training():
    """Some steps of an optimizer, as latents really look: many weights near zero, thresholds that moved."""
    layer = BinaryConv2d(8, 8, 3, padding=1, method='reactnet')
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    x = torch.randn(4, 8, 9, 7)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(x) - x).square().mean().backward()
        optimizer.step()
    assert layer.activation.shift.abs().min() > 0
    check(layer.eval(), special_(x, threshold_of(layer)))
