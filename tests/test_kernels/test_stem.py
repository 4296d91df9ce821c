"""`stem2d`: every instruction set against float64 within rounding, and its own signs exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import PreparedOp, checks
from bnn_kernels.cpu import engine
from bnn_kernels.epilogue import ACTS
from bnn_kernels.geometry import Stem2dGeometry

from . import cases

pytestmark = pytest.mark.sanitize
ISAS = engine.available_isas() if bk.available_backends()['cpu'] == 'available' else []
BACKENDS = [f'cpu {isa}' for isa in ISAS] + ['reference']
OUTPUTS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 48, 64, 65, 96, 112]))


@st.composite
def stems(draw):
    """Arguments of stem2d: any window and padding, replicas, negative scales, groups of words that do not fill a word."""
    kernel, window = draw(cases.pairs(1, 7)), draw(cases.pairs(1, 4))
    padding = tuple(draw(st.integers(0, k)) for k in kernel)
    window_padding = tuple(draw(st.integers(0, k // 2)) for k in window)
    stride, window_stride = draw(cases.pairs(1, 3)), draw(cases.pairs(1, 4))
    sizes = zip(kernel, padding, stride, window, window_padding, strict=True)
    least = [max(1, k - 2 * p + max(0, w - 2 * wp - 1) * s) for k, p, s, w, wp in sizes]
    height, width = (size + draw(st.integers(0, 25)) for size in least)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    channels, outputs, replicas = draw(st.integers(1, 5)), draw(OUTPUTS), draw(st.sampled_from([1, 1, 1, 2]))
    act, vectors = draw(st.sampled_from(ACTS)), outputs * replicas
    prelu = act == 'prelu'
    x = normal(draw(st.integers(0, 2)), channels, height, width).to(draw(st.sampled_from(cases.STREAMS)))
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return dict(
        x=x, weight=normal(outputs, channels, *kernel), stride=stride, padding=padding, window=window,
        window_stride=window_stride, window_padding=window_padding, scale=normal(vectors), bias=normal(vectors), act=act,
        gamma=normal(vectors) if prelu and draw(st.booleans()) else None, slope=normal(vectors) if prelu else None,
        zeta=normal(vectors) if prelu and draw(st.booleans()) else None,
        threshold=normal(vectors) if draw(st.booleans()) else None,
        out_groups=draw(st.sampled_from([g for g in (1, 2, 3) if vectors % g == 0])),
        dtype=draw(st.sampled_from(cases.STREAMS)), pack=draw(st.booleans()))


def in_float64(call: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream, and how far rounding may move each of its values: once for each term, 16 times for the epilogue."""
    def image(name, otherwise=0.0):
        return torch.tensor(otherwise).double() if call[name] is None else call[name].double().view(-1, 1, 1)

    def pooled(x, weight):
        y = F.conv2d(x, weight, None, call['stride'], call['padding'])
        y = F.max_pool2d(y, call['window'], call['window_stride'], call['window_padding'])
        return y.repeat(1, len(call['scale']) // y.shape[1], 1, 1)

    x, weight = call['x'].double(), call['weight'].double()
    v = pooled(x, weight) * image('scale') + image('bias')
    size = pooled(x.abs(), weight.abs()) * image('scale').abs() + image('bias').abs() + image('gamma').abs()
    if call['act'] == 'prelu':
        v = v - image('gamma')
        v = torch.where(v > 0, v, image('slope') * v) + image('zeta')
        size = size * image('slope').abs().clamp(min=1) + image('zeta').abs()
    elif call['act'] == 'silu':
        v, size = F.silu(v), size * 1.1
    elif call['act'] != 'identity':
        v = v.clamp(0) if call['act'] == 'relu' else v.clamp(-1, 1)
    half = 0 if call['dtype'] == torch.float32 else torch.finfo(call['dtype']).eps
    bound = size * (weight[0].numel() + 16) * torch.finfo(torch.float32).eps + v.abs() * half + 1e-7
    return v, bound


def described(call: dict) -> dict:
    """The call with its objects, as checks and backends take it."""
    numbers = {name: call[name] for name in ('stride', 'padding', 'window', 'window_stride', 'window_padding')}
    return dict(x=call['x'], weight=call['weight'], geometry=Stem2dGeometry.of(call['weight'].shape, **numbers),
                epilogue=bk.Epilogue(*(call[field] for field in bk.Epilogue._fields)), dtype=call['dtype'], pack=call['pack'])


def run(backend: str, call: dict) -> tuple[torch.Tensor, torch.Tensor]:
    name, _, isa = backend.partition(' ')
    with bk.set_backend(name), engine.set_isa(isa or None):
        epilogue = bk.Epilogue(*(call[field] for field in bk.Epilogue._fields))
        rest = {key: value for key, value in call.items() if key not in bk.Epilogue._fields}
        return bk.stem2d(rest.pop('x'), rest.pop('weight'), epilogue, **rest)


@settings(deadline=None, max_examples=120)
@given(call=stems())
def test_float64_within_rounding_and_its_own_signs_exactly(call):
    expected, bound = in_float64(call)
    for backend in BACKENDS:
        words, stream = run(backend, call)
        assert (stream.shape, stream.dtype) == (expected.shape, call['dtype'])
        assert stream.is_contiguous(memory_format=torch.channels_last)
        assert bool(((stream.double() - expected).abs() <= bound).all()), backend
        assert (words is not None) == call['pack']
        if words is not None:
            assert torch.equal(words, bk.pack_activations(stream, call['threshold'], call['out_groups'])), backend


@pytest.fixture
def call():
    """The stem of a ResNet, on whole numbers: no sum rounds, and all backends agree bit for bit."""
    torch.manual_seed(0)
    return dict(x=torch.randint(-4, 5, (2, 3, 45, 61)).float(), weight=torch.randint(-4, 5, (64, 3, 7, 7)).float(),
                stride=(2, 2), padding=(3, 3), window=(3, 3), window_stride=(2, 2), window_padding=(1, 1),
                scale=torch.randn(64), bias=torch.randn(64), act='prelu', gamma=torch.randn(64), slope=torch.rand(64),
                zeta=torch.randn(64), threshold=torch.randn(64), out_groups=1, dtype=torch.float32, pack=True)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('threads', [1, 2, 3])
def test_any_number_of_threads(call, backend, threads):
    expected, before = run('reference', call), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert all(map(torch.equal, run(backend, call), expected))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('how', [
    lambda x: x.contiguous(memory_format=torch.channels_last), lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    lambda x: torch.cat([x, x], 3)[..., :61], lambda x: x[:1].expand(3, -1, -1, -1), lambda x: x[:, 1:2].expand(-1, 3, -1, -1),
    lambda x: x.flip(3)[..., ::2], lambda x: x.half(), lambda x: x[:0], torch.inference_mode()(torch.clone)])
@pytest.mark.parametrize('backend', BACKENDS)
def test_any_memory(call, backend, how):
    call['x'] = how(call['x'])
    assert all(map(torch.equal, run(backend, call), run('reference', call)))


@pytest.mark.parametrize('backend', BACKENDS)
def test_infinities_and_nan(call, backend):
    """NaN stays in every window that it is in, and its sign is -1."""
    call.update(act='identity', gamma=None, slope=None, zeta=None)
    call['x'][0, 1, 20, 30], call['x'][0, 0, 4, 5], call['x'][1, 2, 40, 50] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    call['x'][1, :, 0:7] = torch.nan
    expected, _ = in_float64(call)
    words, stream = run(backend, call)
    assert stream.isnan().any()
    assert stream.isinf().any()
    assert torch.equal(stream.isnan(), expected.isnan())
    torch.testing.assert_close(stream, expected.float(), equal_nan=True)
    assert torch.equal(words, bk.pack_activations(stream, call['threshold']))


@pytest.mark.parametrize('backend', BACKENDS)
def test_bound_follows_what_is_written_to_its_weight(call, backend):
    name, _, isa = backend.partition(' ')
    with bk.set_backend(name), engine.set_isa(isa or None):
        prepared_op = PreparedOp('stem2d', **{key: value for key, value in described(call).items() if key != 'x'})
        for _ in range(2):
            assert all(map(torch.equal, prepared_op(x=call['x']), run('reference', call)))
            call['weight'].mul_(-2)


@pytest.mark.compiles
def test_it_passes_opcheck_and_compiles(call):
    op = torch.ops.bnn_kernels.stem2d.default
    call['x'] = call['x'][:, :, :9, :9]
    torch.library.opcheck(op, tuple(call[argument.name] for argument in op._schema.arguments))
    compiled = torch.compile(lambda x: op(**(call | dict(x=x + 1))), fullgraph=True, backend='aot_eager')
    assert all(map(torch.equal, compiled(call['x']), op(**(call | dict(x=call['x'] + 1)))))


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(x=torch.ones(3, 9, 9)), ValueError, r'takes x \[N, C, H, W\]'),
    (dict(x=torch.ones(1, 3, 9, 9).int()), TypeError, 'x must be float32, float16 or bfloat16'),
    (dict(x=torch.ones(1, 3, 9, 0)), ValueError, 'at least one channel and one pixel'),
    (dict(x=torch.ones(1, 4, 9, 9)), ValueError, r'weight must be \[O, 4, kH, kW\]'),
    (dict(x=torch.ones(1, 3, 9, 9, device='meta')), ValueError, 'x is on meta and weight on cpu'),
    (dict(weight=torch.ones(64, 3, 7, 7).half()), TypeError, 'weight must be torch.float32'),
    (dict(stride=(0, 1)), ValueError, 'stride must be'),
    (dict(padding=(0, 0), x=torch.ones(1, 3, 6, 9)), ValueError, 'the output would be empty'),
    (dict(window=(0, 1)), ValueError, 'window must be'),
    (dict(window=(40, 1), window_padding=(0, 0)), ValueError, 'the output would be empty'),
    (dict(window_padding=(2, 1)), ValueError, r'at most half of the window \[3, 3\]'),
    (dict(scale=torch.ones(65)), ValueError, 'scale must have one element per output channel'),
    (dict(slope=None), ValueError, "act='prelu' needs slope"),
    (dict(out_groups=5), ValueError, 'groups=5 does not divide'),
    (dict(dtype=torch.float64), TypeError, 'dtype of the stream'),
])
def test_one_sentence_for_bad_input(call, change, error, message):
    with pytest.raises(error, match=message):
        run('reference', call | change)
    with pytest.raises(error, match=message):
        checks.stem2d(**described(call | change))


@pytest.mark.skipif(not ISAS, reason='the engine was not compiled')
def test_what_the_engine_leaves_to_others(call):
    call['padding'] = (8, 3)
    refusals = bk.selection('stem2d', **described(call)).refusals
    assert refusals['cpu'] == 'cpu pads a stem by its kernel at most, got padding [8, 3]'
    run('reference', call)
