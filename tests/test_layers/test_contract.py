"""What other libraries do to a layer (fold norms, average, copy, cast, compile, resume), for every layer and every method.

A method that is registered is tested without writing a test.
"""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from bnn_plugins import pack_
from bnn_plugins.binarize import build_method, list_methods, set_progress
from bnn_plugins.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from bnn_plugins.layers.expand import expand_input

from . import oracle

VARIANTS = [dict(type='dorefa', w_bits=2, a_bits=2), dict(type='dorefa', w_bits=4, a_bits=3),
            dict(type='binaryconnect', stochastic=True)]
EXPANSIONS = {'expanded': dict(tau=2, groups=2), 'drop_in': dict(tau=2, style='drop_in', spread=0.2)}
LAYERS = {
    'conv': (lambda method: BinaryConv2d(6, 8, 3, padding=1, method=method), (3, 6, 7, 5)),
    'conv_no_bias': (lambda method: BinaryConv2d(6, 8, 3, stride=2, padding=1, bias=False, method=method), (3, 6, 7, 5)),
    'conv_depthwise': (lambda method: BinaryConv2d(6, 6, 3, padding=2, dilation=2, groups=6, method=method), (3, 6, 7, 5)),
    **{f'conv_{name}': (lambda method, e=e: BinaryConv2d(8, 16, 3, padding=1, method=method, expand=e), (3, 8, 7, 5))
       for name, e in EXPANSIONS.items()},
    'linear_expanded': (lambda method: BinaryLinear(12, 8, method=method, expand=dict(tau=2)), (3, 8, 12)),
    'linear': (lambda method: BinaryLinear(12, 7, method=method), (3, 8, 12)),
    'linear_no_bias': (lambda method: BinaryLinear(12, 7, bias=False, method=method), (30, 12)),
}


class Case:
    def __init__(self, kind, method):
        build, shape = LAYERS[kind]
        self.kind, self.layer = kind, build(method)
        self.x = torch.randn(shape)
        for p in self.layer.parameters():  # thresholds, scales and biases away from their first values
            if p.ndim == 1:
                p.data = p + 0.3 * torch.rand_like(p)

    @property
    def outputs(self):
        return len(self.layer.weight) * self.layer.replicas

    def grads(self, out):
        self.layer.zero_grad()
        (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
        return {name: p.grad.clone() for name, p in self.layer.named_parameters()}


@pytest.fixture(params=[*list_methods(), *VARIANTS], ids=str)
def method(request):
    return request.param


@pytest.fixture(params=LAYERS)
def case(request, method):
    return Case(request.param, method)


@pytest.fixture(params=['conv', 'conv_expanded', 'linear'])
def small_case(request, method):
    return Case(request.param, method)


def levels_and_scale(case):
    """The levels of input and weight, and the weight scale, from the binarizers of the layer."""
    torch.manual_seed(1)
    weight_levels, scale = case.layer.weight_binarizer(case.layer.weight)
    return case.layer.activation(expand_input(case.layer, case.x)), weight_levels, scale


def gained(layer, x, acc):
    """The accumulators times the gain of the methods that have one."""
    return acc if layer.gain is None else acc * layer.gain(x, acc)


def added(layer, values):
    """The sum over the bases of the weights."""
    return sum(values.chunk(layer.bases, -1 if values.ndim < 4 else 1))


def tiled(layer, values):
    """All channels of an expanded layer, or its numbers per filter as one for each output."""
    return torch.cat([values] * layer.replicas, -1 if values.ndim < 4 else 1)


@pytest.mark.parametrize('training', [True, False])
def test_output_is_scale_times_convolution_of_levels(case, training):
    layer = case.layer.train(training)
    torch.manual_seed(1)
    out = layer(case.x)
    levels, weight_levels, scale = levels_and_scale(case)
    acc = torch.from_numpy(oracle.accumulators(layer, levels, weight_levels))
    column = (1, -1, 1, 1) if out.ndim == 4 else (-1,)
    expected = gained(layer, case.x, acc) * layer.activation.step
    if scale is not None:
        expected = expected * scale.double().view(column)
    expected = tiled(layer, added(layer, expected))
    if layer.bias is not None:
        expected = expected + layer.bias.double().view(column)
    assert out.shape == expected.shape
    real = layer.activation.bits == 32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5 if real else 5e-7, atol=1e-5 if real else 2e-6)


@pytest.mark.parametrize('folded', [False, True])
def test_epilogue_order_bit_for_bit(case, folded):
    """``acc * (scale * step * folded) + bias`` in float32: the packed layer repeats these roundings exactly."""
    layer = case.layer.eval()
    if layer.activation.bits == 32:  # real activations: the accumulator itself is rounded
        return
    if folded:
        layer.fold_(torch.randn(case.outputs))
    levels, weight_levels, scale = levels_and_scale(case)
    out = gained(layer, case.x, torch.from_numpy(oracle.accumulators(layer, levels, weight_levels)).float())
    column = (1, -1, 1, 1) if out.ndim == 4 else (-1,)
    factor = torch.ones(1) if scale is None else scale
    factor = factor * layer.activation.step  # a product with 1 changes no bit
    if layer.bases > 1:
        out, factor = added(layer, out * factor.view(column)), torch.ones(1)
    out, factor = tiled(layer, out), factor if factor.numel() == 1 else tiled(layer, factor)
    if folded:
        factor = factor * layer.folded_scale
    out = out * factor.view(column)
    if layer.bias is not None:
        out = out + layer.bias.view(column)
    assert torch.equal(layer(case.x), out)


@pytest.mark.parametrize('training', [True, False])
def test_levels(case, training):
    layer = case.layer.train(training)
    levels, weight_levels, scale = levels_and_scale(case)
    bits = layer.weight_binarizer.bits
    top = 2**bits - 1
    if training and layer.weight_binarizer.annealed:
        assert (weight_levels.abs() <= 1).all()
        set_progress(layer, 1.0)
        levels, weight_levels, scale = levels_and_scale(case)
    assert set(weight_levels.unique().tolist()) <= set(range(-top, top + 1, 2))
    if bits == 1:
        assert (weight_levels.abs() == 1).all()
    if layer.activation.bits < 32:
        known = {-1, 1} if layer.activation.signed else set(range(2**layer.activation.bits))
        if layer.activation.twos_complement:
            known = {level - 2**(layer.activation.bits - 1) for level in known}
        assert set(levels.unique().tolist()) <= known
    assert scale is None or scale.shape in [(1,), (layer.bases * len(layer.weight),)]


def test_real_weights_are_not_packed(small_case, method):
    """The first of two steps: one sentence says what comes next, and the latents fit the second step."""
    options = dict(type=method) if isinstance(method, str) else dict(method)
    if options['type'] == 'binaryconnect':
        return
    first = Case(small_case.kind, dict(options, binarize_weights=False)).layer
    with pytest.raises(ValueError, match='real weights, which have no bits: train the second step'):
        pack_(first)
    missing, unexpected = small_case.layer.load_state_dict(first.state_dict(), strict=False)
    assert not unexpected
    assert all(name.startswith('weight_binarizer.') for name in missing)


def test_gradients_reach_every_parameter_and_the_input(case):
    x = case.x.clone().requires_grad_()
    grads = case.grads(case.layer.train()(x))
    assert 'weight' in grads
    for name, grad in [*grads.items(), ('input', x.grad)]:
        assert grad.isfinite().all(), name
        assert grad.any(), name
    assert (grads['weight'].flatten(1) != 0).any(1).all(), 'every filter learns'


def test_gradient_of_the_layer_is_that_of_the_binary_weight(small_case):
    """Scale after the convolution or inside of the weight: the same gradients for latents, scales, thresholds and input."""
    layer = small_case.layer.train().double()
    results = []
    for folded in (False, True):
        x = small_case.x.double().requires_grad_()
        torch.manual_seed(1)
        if folded:
            weight_levels, scale = layer.weight_binarizer(layer.weight)
            value = weight_levels if scale is None else weight_levels * scale.view(-1, *[1] * (layer.weight.ndim - 1))
            value = sum(value.chunk(layer.bases))
            levels = layer.activation(x) * layer.activation.step
            if isinstance(layer, nn.Conv2d):
                out = gained(layer, x, nn.functional.conv2d(levels, value, padding=1, groups=layer.groups))
                out = tiled(layer, out) + layer.bias[:, None, None]
            else:
                out = tiled(layer, gained(layer, x, nn.functional.linear(levels, value))) + layer.bias
        else:
            out = layer(x)
        results.append((out, small_case.grads(out), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


def test_amp(case):
    layer = case.layer.train()
    torch.manual_seed(2)
    exact = layer(case.x)
    torch.manual_seed(2)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(case.x)
        grads = case.grads(out)
    torch.testing.assert_close(out.float(), exact, rtol=0.02, atol=0.05)
    for name, grad in grads.items():
        assert grad.dtype == torch.float32, name
        assert grad.isfinite().all(), name
        assert grad.any(), name


def test_amp_in_evaluation_changes_nothing(case):
    """Training may round the sums; what is evaluated must be what the bits compute."""
    layer = case.layer.eval()
    exact = layer(case.x)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(layer(case.x), exact)


def test_gradient_scaling_cancels(small_case, method):
    """A loss scale, as of a GradScaler, comes out of the gradients as it went in."""
    if method == 'rebnn':  # its reconstruction term does not pass through the loss; the docstring says so
        return
    layer = small_case.layer.train()
    torch.manual_seed(1)
    grads = small_case.grads(layer(small_case.x))
    torch.manual_seed(1)
    scaled = small_case.grads(layer(small_case.x) * 2.0**16)
    for name, grad in grads.items():
        torch.testing.assert_close(scaled[name] / 2.0**16, grad)


def test_optimizer_step_moves_the_output(case):
    layer = case.layer.train()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    before = {name: p.clone() for name, p in layer.named_parameters()}
    first = layer.eval()(case.x)
    for _ in range(5):
        optimizer.zero_grad()
        layer.train()(case.x).sub(3).square().mean().backward()
        optimizer.step()
    for name, p in layer.named_parameters():
        assert not torch.equal(p, before[name]), name
    assert not torch.equal(layer.eval()(case.x), first)


def test_ema(small_case):
    from mmengine.model import ExponentialMovingAverage

    layer = small_case.layer.eval()
    ema = ExponentialMovingAverage(layer, momentum=0.25, update_buffers=True)
    old = layer.weight.clone()
    ema.update_parameters(layer)
    layer.weight.data = torch.randn_like(old)
    ema.update_parameters(layer)
    torch.testing.assert_close(ema.module.weight, 0.75 * old + 0.25 * layer.weight)
    # The average is binarized like any latent.
    layer.weight.data = 0.75 * old + 0.25 * layer.weight.data
    torch.testing.assert_close(ema(small_case.x), layer(small_case.x))


def test_exponential_momentum_ema(small_case):
    from mmdet.models.layers import ExpMomentumEMA

    layer = small_case.layer
    ema = ExpMomentumEMA(layer, momentum=0.002, gamma=10, update_buffers=True)
    for _ in range(3):
        for p in layer.parameters():
            p.data = torch.randn_like(p)
        ema.update_parameters(layer)
    for p in ema.module.parameters():
        assert p.isfinite().all()
    assert ema.eval()(small_case.x).isfinite().all()


def test_compile(small_case, method):
    """One graph, the outputs and gradients of eager, and no recompilation when the schedule goes on."""
    from torch._dynamo.testing import CompileCounterWithBackend

    if small_case.kind == 'conv_expanded' and method not in ('reactnet', 'real2binary'):  # takes long, and the tile is one
        return
    torch._dynamo.reset()
    layer = small_case.layer.train()
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    graphs = []
    for progress in (0.0, 0.3, 0.6, 0.9, 1.0):
        set_progress(layer, progress)
        torch.manual_seed(1)
        out = compiled(small_case.x)
        grads = small_case.grads(out)
        torch.manual_seed(1)
        eager = layer(small_case.x)
        torch.testing.assert_close(out, eager, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grads, small_case.grads(eager), rtol=1e-5, atol=1e-5)
        graphs.append(counter.frame_count)
    # A number that changes for the first time costs one graph: RBNN's gradient of activations does so after 0.6.
    assert graphs[-2] == graphs[-1] <= 4, f'graphs after each change of the progress: {graphs}'
    layer.eval()
    torch.testing.assert_close(compiled(small_case.x), layer(small_case.x), rtol=1e-6, atol=1e-6)
    torch._dynamo.reset()


def test_deepcopy(case):
    twin = copy.deepcopy(case.layer).eval()
    case.layer.eval()
    assert torch.equal(twin(case.x), case.layer(case.x))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in case.layer.parameters()}
    with torch.no_grad():
        twin.weight.neg_()
    assert not torch.equal(twin(case.x), case.layer(case.x))


def test_state_dict(small_case, method):
    layer = small_case.layer.eval()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = Case(small_case.kind, method).layer.eval()
    with torch.no_grad():
        fresh.weight.neg_()
    assert not torch.equal(fresh(small_case.x), layer(small_case.x))
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(small_case.x), layer(small_case.x))
    buffers = dict(rbnn={'weight_binarizer.left', 'weight_binarizer.right'},
                   rebnn={'weight_binarizer.flips', 'weight_binarizer.last'}).get(str(method), set())
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()} | buffers


def test_packed_equals_latent(case):
    layer = case.layer.eval()
    expected = layer(case.x)
    assert torch.equal(pack_(copy.deepcopy(layer))(case.x), expected)


def test_pickle(small_case):
    twin = pickle.loads(pickle.dumps(small_case.layer.eval()))
    assert torch.equal(twin(small_case.x), small_case.layer(small_case.x))


def test_gradient_checkpointing(small_case):
    from torch.utils.checkpoint import checkpoint

    layer = small_case.layer.train()
    torch.manual_seed(1)
    expected = small_case.grads(layer(small_case.x))
    torch.manual_seed(1)
    grads = small_case.grads(checkpoint(layer, small_case.x.clone().requires_grad_(), use_reentrant=False))
    torch.testing.assert_close(grads, expected)


def test_functional_call(small_case):
    """``torch.func.functional_call`` swaps the latents: no fold is mistaken for it."""
    layer = small_case.layer.eval()
    twin = copy.deepcopy(layer)
    twin.weight.data = torch.randn_like(layer.weight)
    out = torch.func.functional_call(layer, dict(twin.named_parameters()), small_case.x)
    assert torch.equal(out, twin(small_case.x))


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes(small_case, dtype):
    layer = small_case.layer.to(dtype).eval()
    out = layer(small_case.x.to(dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_meta_device(method):
    """Large models are built on ``meta`` first."""
    layer = BinaryConv2d(6, 8, 3, method=method, device='meta')
    assert all(p.is_meta for p in layer.parameters())
    layer = BinaryLinear(6, 8, method=method, device='meta', dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())


def test_empty_batch(small_case):
    out = small_case.layer.train()(small_case.x[:0])
    assert out.shape[0] == 0
    out.sum().backward()


def test_load_into_meta(small_case, method):
    """``load_state_dict(assign=True)`` sets the weight as an attribute."""
    layer = small_case.layer.eval()
    with torch.device('meta'):
        fresh = Case(small_case.kind, method).layer.eval()
    fresh.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(fresh(small_case.x), layer(small_case.x))
    layer.load_state_dict(layer.state_dict(), assign=True)
    assert layer.folded_scale is None
    assert torch.equal(fresh(small_case.x), layer(small_case.x))


@pytest.mark.parametrize(('cls', 'base'), [(BinaryConv2d, nn.Conv2d), (BinaryLinear, nn.Linear)])
def test_direct_base(cls, base):
    """mmengine's init_cfg looks at a class and its direct bases only."""
    assert base in cls.__bases__
    assert issubclass(cls, BinaryLayer)


def test_latents_start_like_the_float_layer(method):
    torch.manual_seed(5)
    layer = BinaryConv2d(6, 8, 3, method=method)
    torch.manual_seed(5)
    real = nn.Conv2d(6, 8, 3)
    assert torch.equal(layer.weight, real.weight)
    assert torch.equal(layer.bias, real.bias)


def test_method_is_printed(method):
    assert f'method={method!r}' in repr(BinaryLinear(4, 4, method=method))
    assert build_method(method)
