"""Binary attention, latent and packed: a numpy oracle, the contract of layers, exactness over shapes, masks and ties."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bnn_plugins
from bnn_plugins.binarize import list_methods, list_probabilities
from bnn_plugins.deploy import PackedAttention, PackedLinear
from bnn_plugins.layers import BinaryAttention

SPECS = {'elastic': dict(type='elastic', initial=0.3), 'multi_plane': dict(type='multi_plane', initial=0.4),
         'gsb': dict(type='gsb', initial=0.3)}
METHODS = ('binaryvit', 'bit', 'reactnet', 'bireal', 'recu', 'rbnn')
SIGNLESS = ('binaryconnect', 'dorefa', 'binarydm')


def build(probability='elastic', method='binaryvit', channels=12, heads=2, **kwargs):
    layer = BinaryAttention(channels, heads, method, SPECS.get(probability, probability), **kwargs)
    with torch.no_grad():
        for name, p in layer.named_parameters():  # thresholds and steps away from their first values
            p.add_(0.1 * torch.rand_like(p) if 'probability' not in name else 0.02 * torch.rand_like(p))
    return layer


def tensors(queries=7, keys=5, channels=12, batch=3, grad=False):
    """Multiples of 1/2, so that thresholds are met exactly."""
    return [(2 * torch.randn(batch, n, channels)).round().div(2).requires_grad_(grad) for n in (queries, keys, keys)]


@pytest.fixture(params=list_probabilities())
def probability(request):
    return request.param


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize('mask', ['none', 'of the sample', 'of each query'])
def test_against_numpy(probability, mask):
    layer = build(probability, 'bit').eval()
    q, k, v = tensors()
    keep = {'none': None, 'of the sample': torch.rand(3, 5) > 0.3, 'of each query': torch.rand(3, 7, 5) > 0.3}[mask]
    with torch.no_grad():
        out = layer(q, k, v, keep)
    masked = np.zeros((3, 7, 5), bool) if keep is None else np.broadcast_to(~keep.numpy().reshape(3, -1, 5), (3, 7, 5))
    d, size = 6, [float(getattr(layer, n).step.detach()) for n in ('query', 'key', 'value')]
    signs = [sign(x.numpy() + getattr(layer, n).shift.detach().numpy()).reshape(3, -1, 2, d).transpose(0, 2, 1, 3)
             for x, n in ((q, 'query'), (k, 'key'), (v, 'value'))]
    s = np.where(masked[:, None], -np.inf, signs[0] @ signs[1].transpose(0, 1, 3, 2))
    assert np.isfinite(s).any(-1).all()
    p = softmax(s * size[0] * size[1] / d ** 0.5)
    top = p.max(-1, keepdims=True)
    a = getattr(layer.probability, 'size', torch.zeros(1)).detach().numpy()
    bits = {
        'none': lambda: p, 'bool': lambda: s > 0, 'max_relative': lambda: p >= top / 4 - 1e-12,
        'elastic': lambda: a * (p > a / 2),
        'multi_plane': lambda: sum((p > (m + 0.5) * a[:, None, None] / 3) * a[:, None, None] / 3 for m in range(3)),
        'gsb': lambda: a * ((p > a / 2) + sum(e * (p > share * top + 1e-12) for e, share in zip(
            layer.probability.extra.detach().numpy(), (0.7, 0.9), strict=True)))}[probability]()
    expected = (bits * 1.0 @ signs[2]).transpose(0, 2, 1, 3).reshape(3, 7, 12) * size[2]
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-5, atol=1e-6)


def sums_of_values(rule, q, k, v, size, scale):
    """The values' sums of each query by the definitions, float64, one head: ``q``, ``k``, ``v`` are -1 and +1."""
    s = q @ k.swapaxes(-1, -2)
    p = softmax(s * scale)
    bits = {'bool': s > 0, 'max_relative': p >= p.max(-1, keepdims=True) / 4 - 1e-12, 'elastic': p > size / 2}[rule]
    assert 0.01 < bits.mean() < 0.99
    return bits.astype(np.float64) @ v


@pytest.mark.parametrize('features', [64, 255, 301, 600, 601, 1030])
@pytest.mark.parametrize('rule', ['bool', 'max_relative', 'elastic'])
@pytest.mark.parametrize('mode', ['train', 'eval', 'packed'])
def test_half_precision_counts_every_channel(features, rule, mode):
    """Scores of 600 channels are no numbers of bfloat16, nor are sums of 300 values. Keys at every distance from the query."""
    keys = 300 if mode != 'train' else 200  # in training the sums are as rounded as those of every layer
    layer = BinaryAttention(features, 1, 'bireal', rule if rule != 'elastic' else dict(type='elastic', initial=0.01))
    layer = layer.bfloat16().train(mode == 'train')
    q, v = (torch.where(torch.rand(1, n, features) < 0.5, -1.0, 1.0) for n in (4, keys))
    near = torch.rand(1, keys, features) < torch.linspace(0, 0.6, keys)[:, None]
    k = torch.where(near, -q[:, :1], q[:, :1])
    size = 1.0 if rule != 'elastic' else float(layer.probability.size.detach())
    expected = size * sums_of_values(rule, *(x.double().numpy() for x in (q[:, :1], k, v)), size, features ** -0.5)
    if mode == 'packed':
        layer = bnn_plugins.pack_(layer)
    out = layer(*(x.bfloat16() for x in (q[:, :1], k, v)))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.detach(), torch.from_numpy(expected).bfloat16())


@pytest.mark.parametrize('features', [6, 300])
@pytest.mark.parametrize('parameters', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('inputs', [torch.float32, torch.bfloat16])
def test_packed_equals_latent_in_half_precision(probability, features, parameters, inputs):
    layer = build(probability, 'reactnet', 2 * features, 2).to(parameters).eval()
    x = [t.to(inputs) for t in tensors(channels=2 * features)]
    with torch.no_grad():
        expected, found = layer(*x), bnn_plugins.pack_(copy.deepcopy(layer))(*x)
    assert expected.dtype == torch.promote_types(parameters, inputs)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_gradients_reach_everything(probability):
    layer, inputs = build(probability, 'bit'), tensors(grad=True)
    (layer(*inputs) * torch.randn(3, 7, 12)).sum().backward()
    for name, tensor in [*layer.named_parameters(), *zip('qkv', inputs, strict=True)]:
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def test_signs_of_a_head_are_two_valued(probability):
    layer, seen = build(probability, 'reactnet'), {}
    for name in ('query', 'key', 'value'):
        getattr(layer, name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o}))
    layer(*tensors())
    assert all(set(levels.unique().tolist()) == {-1.0, 1.0} for levels in seen.values())


class TestPacked:
    @pytest.mark.parametrize('method', METHODS)
    def test_equals_latent(self, probability, method):
        layer, inputs, keep = build(probability, method).eval(), tensors(), torch.rand(3, 5) > 0.3
        keep[0] = False  # a sample without keys
        for mask in (None, keep):
            with torch.no_grad():
                expected = layer(*inputs, mask)
                packed = bnn_plugins.pack_(copy.deepcopy(layer))
                assert isinstance(packed, PackedAttention)
                assert torch.equal(packed(*inputs, mask), expected)
                assert torch.equal(packed.eval()(*inputs, mask), expected)
        assert not expected[0].any()

    @given(data=st.data(), probability=st.sampled_from(list_probabilities()), heads=st.integers(1, 3), d=st.integers(1, 70),
           queries=st.integers(1, 6), keys=st.integers(1, 70), masked=st.booleans())
    def test_every_shape(self, data, probability, heads, d, queries, keys, masked):
        torch.manual_seed(data.draw(st.integers(0, 2**31)))
        layer = build(probability, 'binaryvit', heads * d, heads).eval()
        inputs = tensors(queries, keys, heads * d, 2)
        keep = torch.rand(2, keys) > 0.5 if masked else None
        with torch.no_grad():
            expected = layer(*inputs, keep)
            assert torch.equal(bnn_plugins.pack_(layer)(*inputs, keep), expected)

    def test_file(self, probability, tmp_path):
        model = torch.nn.Sequential(build(probability)).eval()
        inputs = tensors()
        with torch.no_grad():
            expected = model[0](*inputs)
            path = bnn_plugins.save_packed(bnn_plugins.pack_(copy.deepcopy(model)), tmp_path / 'attention.safetensors')
            for fresh in (torch.nn.Sequential(build(probability)), bnn_plugins.pack_(torch.nn.Sequential(build(probability)))):
                assert torch.equal(bnn_plugins.load_packed_(fresh, path)[0](*inputs), expected)
            loaded = bnn_plugins.load_packed_(torch.nn.Sequential(build(probability)), bnn_plugins.deploy.read_packed(path))
            assert isinstance(loaded[0], PackedAttention)
            assert torch.equal(loaded[0](*inputs), expected)
        with pytest.raises(ValueError, match=r'attention 12 heads 3 .* in the model, but "attention 12 heads 2'):
            bnn_plugins.load_packed_(torch.nn.Sequential(build(probability, heads=3)), path)

    def test_a_file_without_it(self, tmp_path):
        model = torch.nn.Sequential(bnn_plugins.layers.BinaryLinear(4, 4))
        path = bnn_plugins.save_packed(bnn_plugins.pack_(model), tmp_path / 'linear.safetensors')
        other = torch.nn.Sequential(bnn_plugins.layers.BinaryLinear(4, 4), build())
        with pytest.raises(ValueError, match=r"the layer '1' is .attention 12 .* in the model, but .not binary. in the file"):
            bnn_plugins.load_packed_(other, path)
        assert not any(isinstance(module, PackedAttention | PackedLinear) for module in other.modules())


class TestContract:
    def test_amp(self, probability):
        layer, inputs = build(probability), tensors(grad=True)
        exact = layer(*inputs)
        with torch.autocast('cpu', torch.bfloat16):
            out = layer(*inputs)
            out.float().square().sum().backward()
        torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.05)
        assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in layer.parameters())
        layer.eval()
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            if probability != 'none':  # a real product may be rounded
                assert torch.equal(layer(*inputs), exact.detach())

    def test_ema_deepcopy_pickle_state_dict(self, probability):
        from mmengine.model import ExponentialMovingAverage
        layer, inputs = build(probability, 'bit').eval(), tensors()
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        fresh = build(probability, 'bit').eval()
        fresh.load_state_dict(torch.load(file, weights_only=True))
        ema = ExponentialMovingAverage(layer, momentum=0.5, update_buffers=True)
        ema.update_parameters(layer)
        with torch.no_grad():
            expected = layer(*inputs)
            for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh, ema):
                assert torch.equal(twin(*inputs), expected)

    @pytest.mark.parametrize('probability', ['elastic', 'max_relative'])  # all their operations; each takes seconds
    def test_compile(self, probability):
        torch._dynamo.reset()
        layer, inputs = build(probability, 'bit'), tensors(grad=True)
        compiled = torch.compile(layer, backend='aot_eager', fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), layer(*inputs), rtol=1e-6, atol=1e-6)
        compiled(*inputs).sum().backward()
        assert all(x.grad.isfinite().all() for x in inputs)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), layer(*inputs), rtol=1e-6, atol=1e-6)
        torch._dynamo.reset()

    @pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
    def test_dtypes_and_empty_batches(self, probability, dtype):
        layer = build(probability).to(dtype)
        inputs = [x.to(dtype) for x in tensors()]
        out = layer(*inputs)
        assert out.dtype == dtype
        assert out.isfinite().all()
        empty = layer(*(x[:0] for x in inputs))
        assert empty.shape == (0, 7, 12)
        empty.sum().backward()


def test_real_values():
    layer = build('none', real_values=True).eval()
    q, k, v = tensors()
    with torch.no_grad():
        torch.testing.assert_close(layer(q, k, 3 * v), 3 * layer(q, k, v))
        assert torch.equal(bnn_plugins.pack_(copy.deepcopy(layer))(q, k, v), layer(q, k, v))


def test_hooks_see_scaled_scores():
    layer, seen = build('elastic', channels=8, heads=2), []
    layer.logits.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layer(*tensors(channels=8))
    assert seen[0].shape == (3, 2, 7, 5)
    assert set((seen[0] * 2).abs().round(decimals=4).unique().tolist()) <= {0.0, 2.0, 4.0}


def test_costs():
    layer = build('multi_plane', channels=12)
    totals = bnn_plugins.summarize(layer, tuple(tensors(batch=1))).totals
    assert totals.bops == totals.macs == (1 + 3) * 7 * 5 * 12
    totals = bnn_plugins.summarize(build('none'), tuple(tensors(batch=1))).totals
    assert (totals.bops, totals.flops) == (7 * 5 * 12, 7 * 5 * 12)
    packed = bnn_plugins.summarize(bnn_plugins.pack_(layer), tuple(tensors(batch=1)))
    assert packed.totals.bops == 4 * 7 * 5 * 12


@pytest.mark.parametrize(('arguments', 'sentence'), [
    (dict(channels=12, heads=5), '12 channels cannot be divided among 5 heads'),
    (dict(channels=12, method='dorefa'), "activations of the method 'dorefa' are not"),
    (dict(channels=12, probability='boole'), "did you mean 'bool'"),
    (dict(channels=12, real_values=True), "needs probability='none'"),
])
def test_errors(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        BinaryAttention(**arguments)


@pytest.mark.parametrize('method', list_methods())
def test_which_methods_take_signs(method):
    if method in SIGNLESS:
        with pytest.raises(ValueError, match='takes signs'):
            BinaryAttention(4, method=method)
    else:
        BinaryAttention(4, method=method)
