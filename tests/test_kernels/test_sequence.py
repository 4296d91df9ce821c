"""Recurrent networks and attention: the reference against other arithmetic, the engine against the reference, and the rest."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import checks, cpu, recurrence
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.cpu.sequence import MOST_FEATURES
from bnn_kernels.layout import pack_bits, unpack_bits, unpack_signs
from bnn_kernels.reference import Reference

from . import cases, oracle

CPU, REFERENCE = Cpu(), Reference()
ISAS = cpu.available_isas() if bk.available_backends()['cpu'] == 'available' else []
needs_engine = pytest.mark.skipif(not ISAS, reason='the engine was not compiled')


def examples(number: int):
    return settings(deadline=None, max_examples=number)


# --- sigmoid and tanh --------------------------------------------------------------------------------------------

BOUND = 5e-7  # as recurrence.py says


def test_sigmoid_and_tanh_are_within_their_bound():
    """Against float64: a dense grid, small and large magnitudes, relative and absolute."""
    x = torch.cat([torch.linspace(-20, 20, 400_001), torch.linspace(-79.9, 79.9, 100_001),
                   torch.logspace(-38, 1, 100_001), -torch.logspace(-38, 1, 100_001)])
    for function, exact in (recurrence.sigmoid, torch.sigmoid), (recurrence.tanh, torch.tanh):
        error = function(x).double() - exact(x.double())
        assert error.abs().max() < BOUND
        relative = error / exact(x.double())
        assert relative[x != 0].abs().max() < BOUND


def test_sigmoid_and_tanh_keep_the_sign():
    x = torch.tensor([-torch.inf, -3e38, -1e3, -1.0, -1e-30, 0.0, 1e-30, 1.0, 1e3, 3e38, torch.inf])
    assert torch.equal(recurrence.tanh(x).sign(), x.sign())
    assert bool((recurrence.sigmoid(x) > 0).all())
    assert recurrence.sigmoid(torch.zeros(1)).item() == pytest.approx(0.5, abs=1e-7)


# --- the reference against other arithmetic --------------------------------------------------------------------------

def step_in_float64(call: dict, d: int, t: int, n: int, bits: np.ndarray, cell: np.ndarray):
    """One step of one sequence in float64 with the exact functions: h, the value the bit is made from, the next cell."""
    units, outputs = cell.shape[0], call['w_words'].shape[1] // 4
    inputs = call['x'].shape[-1] // 4
    weight = unpack_signs(call['w_words'][d], units).double().numpy()
    sums = (weight @ np.where(bits, 1.0, -1.0)).reshape(4, outputs)
    if call['eps'] is not None:
        sums = (sums - sums.mean(1, keepdims=True)) / np.sqrt(sums.var(1, keepdims=True) + call['eps'])
    vector = {name: None if call[name] is None else call[name][d].double().numpy().reshape(4, units)
              for name in ('scale', 'scale_x', 'bias')}
    z = call['x'][t, n, d].double().numpy().reshape(4, inputs)[:, np.arange(units) % inputs]
    z = z if vector['scale_x'] is None else z * vector['scale_x']
    z = z if vector['bias'] is None else z + vector['bias']
    z = z + sums[:, np.arange(units) % outputs] * vector['scale']
    soft = 1 / (1 + np.exp(-np.clip(z, -500, 500)))
    i, f, o = (np.where(z[k] >= 0, 1.0, 0.0) if hard else soft[k]
               for k, hard in ((0, call['gates'] != 'soft'), (1, call['gates'] != 'soft'), (3, call['gates'] == 'binary')))
    g = np.tanh(z[2]) if call['candidate'] == 'tanh' else np.where(z[2] >= 0, 1.0, -1.0)
    c = f * cell + i * g
    c = np.clip(c, -127, 127) if call['cell'].dtype == torch.int8 else c
    h = o * (np.tanh(c) if call['readout'] == 'tanh' else c)
    return h, c if call['feedback'] == 'and' else h, c, o, np.abs(z).min(0)


@examples(60)
@given(call=cases.lstms(steps=1, batch=2))
def test_a_step_is_that_of_float64(call):
    """Given equal bits and cells, the real results are within the rounding of float32, and a bit differs only there."""
    h, words, h_words, cell = REFERENCE.binary_lstm(**call | dict(pack=True, keep=True, lengths=None))
    units = cell.shape[-1]
    bits = unpack_bits(h_words, units)
    for t in range(len(call['x'])):
        assert torch.equal(h_words, words[t].transpose(0, 1))
        for d, n in np.ndindex(*cell.shape[:2]):
            first = unpack_bits(call['h_words'], units)[d, n].numpy()
            real, value, c, o, least = step_in_float64(call, d, t, n, first, call['cell'][d, n].double().numpy())
            # A gate whose pre-activation rounds to the other side of zero is another gate: such units say nothing.
            sure = least > 1e-4
            np.testing.assert_allclose(h[t, n, d].numpy()[sure], real[sure], rtol=2e-5, atol=2e-5)
            np.testing.assert_allclose(cell[d, n].double().numpy()[sure], c[sure], rtol=2e-5, atol=2e-5)
            level = 0.0 if call['threshold'] is None else call['threshold'][d].double().numpy()
            expected = (value >= level) & (o == 1 if call['feedback'] == 'and' else True)
            certain = sure & (np.abs(value - level) > 2e-5)
            if call['threshold'] is None:  # the sign of h is that of the cell, however small h is
                certain |= sure & (np.abs(c) > 2e-5) & (call['gates'] != 'binary')
            assert np.array_equal(bits[d, n].numpy()[certain], expected[certain])


def test_directions_lengths_and_states_are_those_of_single_steps():
    """The whole call equals calls of one step that hand bits and cell on, each sequence by itself."""
    generator = torch.Generator().manual_seed(0)
    steps, batch, units = 6, 3, 40
    weight = bk.pack_features(torch.randn(2, 4 * units, units, generator=generator))
    x = torch.randn(steps, batch, 2, 4 * units, generator=generator)
    lengths = torch.tensor([6, 2, 0])
    parameters = bk.Recurrence(torch.full((2, 4 * units), 0.1), threshold=torch.randn(2, units, generator=generator) * 0.1)
    h, words, h_words, cell = bk.binary_lstm(x, weight, parameters, lengths=lengths, pack=True)
    for d in range(2):
        one = bk.Recurrence(parameters.scale[d:d + 1], threshold=parameters.threshold[d:d + 1])
        for n, length in enumerate(lengths.tolist()):
            state = None, None
            for t in range(length) if d == 0 else reversed(range(length)):
                real, bits, *state = bk.binary_lstm(x[t:t + 1, n:n + 1, d:d + 1], weight[d:d + 1], one, *state, pack=True)
                assert torch.equal(real[0, 0, 0], h[t, n, d])
                assert torch.equal(bits[0, 0, 0], words[t, n, d])
            assert not h[length:, n, d].any()
            assert not words[length:, n, d].any()
            if length:
                assert torch.equal(state[0][0, 0], h_words[d, n])
                assert torch.equal(state[1][0, 0], cell[d, n])
    assert not h_words[:, 2].any()
    assert not cell[:, 2].any()


def test_the_first_state_is_all_minus_one_and_zero():
    weight, x = bk.pack_features(torch.randn(1, 12, 3)), torch.randn(2, 2, 1, 12)
    parameters = bk.Recurrence(torch.ones(1, 12))
    first = pack_bits(torch.zeros(1, 2, 3, dtype=torch.bool)), torch.zeros(1, 2, 3)
    for result, expected in zip(bk.binary_lstm(x, weight, parameters), bk.binary_lstm(x, weight, parameters, *first),
                                strict=True):
        assert (result is None and expected is None) or torch.equal(result, expected)


def test_an_int8_cell_saturates_and_a_float_one_counts():
    """All gates open and a candidate of +1: the cell counts its steps."""
    weight, x = bk.pack_features(torch.ones(1, 4, 1)), torch.ones(200, 1, 1, 4)
    parameters = bk.Recurrence(torch.zeros(1, 4), gates='binary', candidate='sign', readout='cell', feedback='and')
    for dtype, end in (torch.int8, 127), (torch.float32, 200):
        h, _, _, cell = bk.binary_lstm(x, weight, parameters, cell=torch.zeros(1, 1, 1, dtype=dtype))
        assert (cell.item(), h[-1].item(), h[5].item()) == (end, end, 6)
        assert cell.dtype == dtype


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Float [B, N, heads * d] to float64 signs [B, heads, N, d]."""
    return torch.where(x >= 0, 1.0, -1.0).double().unflatten(-1, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize('rule', ['bool', 'max_relative', 'elastic'])
@pytest.mark.parametrize(('queries', 'keys', 'heads', 'features'), [(5, 33, 3, 24), (49, 49, 2, 32), (20, 130, 1, 64)])
def test_attention_is_that_of_the_softmax(rule, queries, keys, heads, features):
    """Against a softmax in float64 over all scores, with a mask."""
    torch.manual_seed(queries)
    q, k, v = (torch.randn(2, tokens, heads * features) for tokens in (queries, keys, keys))
    mask, scale = torch.rand(2, keys) < 0.8, features ** -0.5
    scores = heads_of(q, heads) @ heads_of(k, heads).transpose(-1, -2)
    scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    probability = (scores * scale).softmax(-1)
    bits, limit, table = {
        'bool': (scores > 0, 1.0, None),
        'max_relative': (probability >= 0.25 * probability.amax(-1, keepdim=True), np.log(4) / scale, None),
        'elastic': (probability > 0.7 / keys, 0.7 / keys, bk.attention_table(scale, features)),
    }[rule]
    expected = (bits.double() @ heads_of(v, heads)).transpose(1, 2)
    limits = torch.full((1, heads), limit, dtype=torch.float64)
    result = bk.binary_attention(bk.pack_heads(q, heads), bk.pack_heads(k, heads), bk.pack_values(v, heads), features, limits,
                                 rule=rule, table=table, mask_words=bk.pack_mask(mask))
    assert result.dtype == torch.int32
    assert torch.equal(result.double(), expected)
    assert 0.1 < bits.double().mean() < 0.9


def test_planes_are_added_in_their_order():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, tokens, 64) for tokens in (9, 40, 40))
    words = bk.pack_heads(q, 2), bk.pack_heads(k, 2), bk.pack_values(v, 2)
    limit, scale = torch.tensor([[1.0, 2], [6, 8], [0.02, 0.03]], dtype=torch.float64), torch.randn(3, 2)
    rules, table = ['bool', 'max_relative', 'elastic'], bk.attention_table(torch.tensor([0.1, 0.2]), 32)
    together = bk.binary_attention(*words, 32, limit, rule=rules, table=table, scale=scale)
    y = None
    for plane, rule in enumerate(rules):
        one = bk.binary_attention(*words, 32, limit[plane:plane + 1], rule=rule, table=table if rule == 'elastic' else None)
        term = one.float() * scale[plane, :, None]
        y = term if y is None else y + term
    assert torch.equal(together, y)


def test_packing_of_heads_and_values():
    x, threshold = oracle.values(1, 2, 5, 3 * 40), oracle.values(2, 3 * 40)
    signs = torch.where(x >= threshold, 1.0, -1.0).unflatten(-1, (3, 40))
    assert torch.equal(unpack_signs(bk.pack_heads(x, 3, threshold), 40), signs)
    assert torch.equal(unpack_signs(bk.pack_values(x, 3, threshold), 5), signs.permute(0, 2, 3, 1))
    mask = torch.rand(2, 50) < 0.5
    assert torch.equal(unpack_bits(bk.pack_mask(mask), 50), mask[:, None])


@examples(40)
@given(seed=oracle.SEEDS, channels=cases.CHANNELS)
def test_normalized_packing_is_layer_norm_and_sign(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    shapes = (4, 3, channels), (channels,), (channels,)
    x, weight, bias = (torch.randn(*shape, generator=generator).double() for shape in shapes)
    weight[::5] = 0
    x = x.float()
    mean, std = x.double().mean(-1), (x.double().var(-1, unbiased=False) + 1e-5).sqrt()
    y = F.layer_norm(x.double(), (channels,), weight, bias)
    threshold = torch.where(weight == 0, torch.where(bias >= 0, -torch.inf, torch.inf), -bias / weight)
    words = bk.pack_normalized(x, mean.float(), std.float(), threshold.float(), weight < 0)
    wrong = unpack_bits(words, channels) != (y >= 0)
    assert not (wrong & (y.abs() > 1e-4)).any()
    assert not wrong[..., weight == 0].any()


# --- the engine: every instruction set, in every mode bit for bit ------------------------------------------------

def agree(op: str, call: dict) -> bool:
    """Whether every instruction set returns what the reference returns, and leaves its arguments alone."""
    getattr(checks, op)(**call)
    kept = {name: value.clone() for name, value in call.items() if isinstance(value, torch.Tensor)}
    expected = getattr(REFERENCE, op)(**call)
    for isa in ISAS:
        with cpu.set_isa(isa):
            result = getattr(CPU, op)(**call)
        pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
        if not all(cases.same(*pair) for pair in pairs):
            return False
    return all(torch.equal(call[name], value) for name, value in kept.items())


@needs_engine
@examples(120)
@given(call=cases.lstms(steps=4))
def test_binary_lstm(call):
    assert agree('binary_lstm', call)


@needs_engine
@examples(200)
@given(call=cases.attentions())
def test_binary_attention(call):
    assert agree('binary_attention', call)


@needs_engine
@examples(100)
@given(call=cases.normalized())
def test_pack_normalized(call):
    assert agree('pack_normalized', call)


@needs_engine
def test_long_sequences_and_many_keys():
    """Counts that overflow a byte, more units than a block, more keys than a table has entries."""
    random = np.random.default_rng(0)
    for gates, candidate in ('soft', 'tanh'), ('binary', 'sign'):
        call = dict(x=cases.floats(random, 5, 7, 1, 4 * 1100), w_words=cases.words(random, 1, 4 * 1100, 1100),
                    scale=torch.full((1, 4400), 0.02), scale_x=None, bias=None, threshold=None, eps=None, gates=gates,
                    candidate=candidate, readout='tanh', feedback='h', h_words=cases.words(random, 1, 7, 1100),
                    cell=torch.zeros(1, 7, 1100), lengths=None, pack=True, keep=True)
        assert agree('binary_lstm', call)
    for features in 64, 255:
        q, k, v = (cases.words(random, *shape) for shape in ((1, 7, 1, features), (1, 1500, 1, features), (1, 1, 64, 1500)))
        q[0, 0, 0], k[0, 0, 0], k[0, 1, 0] = 0, 0, pack_bits(torch.ones(features, dtype=torch.bool))  # both ends in one row
        for scale in 0.01, 0.125:
            assert agree('binary_attention', dict(
                q_words=q, k_words=k, v_words=v, head_dim=features, rules=['elastic'], scale=None, mask_words=None,
                limit=torch.full((1, 1), 1 / 1500, dtype=torch.float64), table=bk.attention_table(scale, features)))


@needs_engine
def test_threads_change_nothing():
    random = np.random.default_rng(1)
    lstm = dict(x=cases.floats(random, 9, 5, 2, 4 * 256), w_words=cases.words(random, 2, 4 * 256, 256),
                scale=torch.full((2, 1024), 0.05), scale_x=None, bias=None, threshold=None, eps=None, gates='soft',
                candidate='tanh', readout='tanh', feedback='h', h_words=cases.words(random, 2, 5, 256),
                cell=torch.zeros(2, 5, 256), lengths=torch.tensor([9, 3, 0, 8, 9]), pack=True, keep=True)
    attend = dict(q_words=cases.words(random, 2, 100, 3, 64), k_words=cases.words(random, 2, 100, 3, 64),
                  v_words=cases.words(random, 2, 3, 64, 100), head_dim=64, rules=['max_relative'], table=None, scale=None,
                  limit=torch.full((1, 3), 10.0, dtype=torch.float64), mask_words=None)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert agree('binary_lstm', lstm)
        assert agree('binary_attention', attend)
    finally:
        torch.set_num_threads(before)


@needs_engine
@pytest.mark.parametrize('name', ['w_words', 'scale', 'bias', 'scale_x', 'threshold'])
def test_a_parameter_that_is_written_to_is_prepared_again(name):
    random = np.random.default_rng(2)
    call = dict(x=cases.floats(random, 3, 2, 1, 160), w_words=cases.words(random, 1, 160, 40),
                **{vector: cases.floats(random, 1, 160) for vector in ('scale', 'scale_x', 'bias')},
                threshold=cases.floats(random, 1, 40), eps=None, gates='soft', candidate='tanh', readout='tanh', feedback='h',
                h_words=cases.words(random, 1, 2, 40), cell=torch.zeros(1, 2, 40), lengths=None, pack=False, keep=True)
    assert agree('binary_lstm', call)
    before = CPU.binary_lstm(**call)[0]
    call[name].copy_(call[name].flip(1)) if name == 'w_words' else call[name].mul_(-2)
    assert agree('binary_lstm', call)
    assert name == 'threshold' or not torch.equal(before, CPU.binary_lstm(**call)[0])


@needs_engine
def test_large_heads_are_left_to_the_reference():
    words = bk.pack_features(torch.randn(1, 3, 1, MOST_FEATURES + 1))
    values, limit = bk.pack_features(torch.randn(1, 1, 8, 3)), torch.ones(1, 1, dtype=torch.float64)
    y = bk.binary_attention(words, words, values, MOST_FEATURES + 1, limit)
    assert bk.last_backend() == 'reference'
    assert torch.equal(y, REFERENCE.binary_attention(words, words, values, 256, ['bool'], limit, None, None, None))
    with bk.set_backend('cpu'), pytest.raises(RuntimeError, match=r'heads have 255 signs at most, got 256'):
        bk.binary_attention(words, words, values, MOST_FEATURES + 1, limit)


# --- around the operators ------------------------------------------------------------------------------------------

class Net(torch.nn.Module):
    """All operators of this file, one behind the other."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        normal = (torch.randn(*shape, generator=generator) for shape in ((2 * 4 * 24, 48), (2, 4 * 24, 24), (48,), (48,)))
        wx, wh, threshold, flip = normal
        self.register_buffer('wx', bk.pack_weight(wx))
        self.register_buffer('wh', bk.pack_features(wh))
        self.register_buffer('threshold', threshold)
        self.register_buffer('flip', flip > 0)
        self.register_buffer('scale', torch.full((2, 96), 0.1))
        self.register_buffer('limit', torch.full((1, 2), 8.0, dtype=torch.float64))

    def forward(self, x):
        """[T, N, 48] -> [N, T, 48]."""
        words = bk.pack_normalized(x, x[..., 0], x[..., 1], self.threshold, self.flip)
        sums = bk.binary_linear(words, self.wx, 48).unflatten(-1, (2, 96))
        h, bits, state, cell = bk.binary_lstm(sums, self.wh, bk.Recurrence(self.scale, self.scale), pack=True)
        tokens = h.flatten(2).transpose(0, 1)
        y = bk.binary_attention(bk.pack_heads(tokens, 2), bk.pack_heads(tokens, 2), bk.pack_values(tokens, 2), 24, self.limit,
                                rule='max_relative')
        return y.flatten(2), bits, state, cell


def test_the_backend_that_ran_is_named():
    net, x = Net(), torch.randn(5, 2, 48)
    best = net(x)
    for op in 'pack_normalized', 'binary_lstm', 'binary_attention':
        assert bk.last_backend(op) == ('cpu' if ISAS else 'reference')
    with bk.set_backend('reference'):
        for result, expected in zip(best, net(x), strict=True):
            assert torch.equal(result, expected)
    with bk.set_backend('numba') if bk.available_backends()['numba'] == 'available' else bk.set_backend(None):
        if bk.available_backends()['numba'] == 'available':
            with pytest.raises(RuntimeError, match='numba: numba does not implement'):
                net(x)


def test_bound_operators_are_the_public_ones():
    q, k, v = (torch.randn(2, tokens, 64) for tokens in (5, 40, 40))
    words = bk.pack_heads(q, 2), bk.pack_heads(k, 2), bk.pack_values(v, 2)
    limit = torch.full((1, 2), 1 / 40, dtype=torch.float64)
    fixed = dict(head_dim=32, limit=limit, table=bk.attention_table(0.2, 32), scale=None)
    bound = bk.Bound('binary_attention', rules=['elastic'], **fixed)
    given = dict(zip(('q_words', 'k_words', 'v_words'), words, strict=True)) | dict(mask_words=None)
    parameters = bk.Recurrence(torch.full((1, 160), 0.1))
    weight, x = bk.pack_features(torch.randn(1, 160, 40)), torch.randn(4, 3, 1, 160)
    state = torch.zeros(1, 3, 2, dtype=torch.int32), torch.zeros(1, 3, 40)
    scan = bk.Bound('binary_lstm', w_words=weight, **parameters._asdict(), lengths=None, pack=True, keep=True)
    for _ in range(2):
        assert torch.equal(bound(**given), bk.binary_attention(*words, rule='elastic', **fixed))
        for result, expected in zip(scan(x=x, h_words=state[0], cell=state[1]),
                                    bk.binary_lstm(x, weight, parameters, *state, pack=True), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize(('backend', 'sizes'), [('aot_eager', [(5, 2), (7, 3)]), ('inductor', [(5, 2)])])
def test_compile_in_one_graph(backend, sizes):
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=len(sizes) > 1)
    for steps, batch in sizes:
        x = torch.randn(steps, batch, 48)
        for result, expected in zip(compiled(x), net(x), strict=True):
            assert torch.equal(result, expected)


def test_export_with_dynamic_lengths():
    net, auto = Net(), torch.export.Dim.AUTO
    program = torch.export.export(net, (torch.randn(5, 2, 48),), dynamic_shapes=({0: auto, 1: auto},))
    x = torch.randn(9, 4, 48)
    for result, expected in zip(program.module()(x), net(x), strict=True):
        assert torch.equal(result, expected)


LSTM = dict(x=torch.zeros(2, 3, 1, 160), w_words=torch.zeros(1, 160, 2).int(), scale=torch.zeros(1, 160), scale_x=None,
            bias=None, threshold=None, eps=None, gates='soft', candidate='tanh', readout='tanh', feedback='h',
            h_words=torch.zeros(1, 3, 2).int(), cell=torch.zeros(1, 3, 40), lengths=None, pack=False, keep=True)
ATTENTION = dict(q_words=torch.zeros(2, 5, 3, 2).int(), k_words=torch.zeros(2, 40, 3, 2).int(),
                 v_words=torch.zeros(2, 3, 8, 2).int(), head_dim=48, rules=['bool'],
                 limit=torch.zeros(1, 3, dtype=torch.float64), table=None, scale=None, mask_words=None)


@pytest.mark.parametrize(('op', 'change', 'error', 'sentence'), [
    ('binary_lstm', dict(x=torch.zeros(2, 3, 160)), ValueError, r'takes x \[T, N, D, 4 \* units\] .* x\.unflatten'),
    ('binary_lstm', dict(x=torch.zeros(2, 3, 1, 160).half()), TypeError, r'float32 or the int32 sums of binary_linear'),
    ('binary_lstm', dict(x=torch.zeros(2, 3, 1, 80)), ValueError, r'must be \[T, N, D, 160\] or'),
    ('binary_lstm', dict(gates='hard'), ValueError, "Unknown gates 'hard': did you mean"),
    ('binary_lstm', dict(candidate='Tanh'), ValueError, "did you mean 'tanh'"),
    ('binary_lstm', dict(readout='cel'), ValueError, "did you mean 'cell'"),
    ('binary_lstm', dict(feedback='and'), ValueError, "needs a binary output gate, got gates='soft'"),
    ('binary_lstm', dict(cell=torch.zeros(1, 3, 40).to(torch.int8)), ValueError, 'an int8 cell counts: it needs'),
    ('binary_lstm', dict(cell=torch.zeros(1, 3, 41)), ValueError, r'cell must be \[1, 3, 40\], one element per unit'),
    ('binary_lstm', dict(w_words=torch.zeros(1, 120, 2).int()), ValueError, 'stack the gates i, f, g, o'),
    ('binary_lstm', dict(lengths=torch.zeros(2, dtype=torch.int64)), ValueError, r'lengths must be \[3\]'),
    ('binary_lstm', dict(eps=-1.0), ValueError, 'eps must be at least 0'),
    ('binary_lstm', dict(keep=False), ValueError, 'leave nothing to return'),
    ('binary_attention', dict(q_words=torch.zeros(2, 5, 2).int()), ValueError, 'pack queries and keys with pack_heads'),
    ('binary_attention', dict(v_words=torch.zeros(2, 3, 8, 3).int()), ValueError, 'packed along the keys'),
    ('binary_attention', dict(rules=['boolean']), ValueError, "Unknown rule 'boolean': did you mean 'bool'"),
    ('binary_attention', dict(rules=['bool', 'bool']), ValueError, '1 planes and there are 2 rules'),
    ('binary_attention', dict(limit=torch.zeros(1, 3)), TypeError, 'limit must be torch.float64'),
    ('binary_attention', dict(rules=['elastic']), ValueError, 'needs one from attention_table; got elastic without a table'),
    ('binary_attention', dict(table=torch.zeros(1, 49).int()), ValueError, 'got bool with a table'),
    ('binary_attention', dict(rules=['bool'] * 2, limit=torch.zeros(2, 3, dtype=torch.float64)), ValueError,
     r'2 planes of attention are added with their scales: give scale \[2, 3\]'),
    ('binary_attention', dict(mask_words=torch.zeros(2, 4, 2).int()), ValueError, r'mask_words must be \[2, 5, 2\]'),
    ('binary_attention', dict(head_dim=65), ValueError, r'q_words must be \[2, 5, 3, 3\], 65 signs per head'),
    ('binary_attention', dict(k_words=torch.zeros(2, 40, 3, 2, device='meta').int()), ValueError, 'move both to one device'),
])
def test_bad_input_is_one_sentence(op, change, error, sentence):
    call = {'binary_lstm': LSTM, 'binary_attention': ATTENTION}[op]
    getattr(checks, op)(**call)
    with pytest.raises(error, match=sentence) as caught:
        getattr(torch.ops.bnn_kernels, op)(*(call | change).values())
    assert '\n' not in str(caught.value)


def test_tables_and_helpers_refuse_what_they_cannot_do():
    for scale in -0.1, float('inf'), torch.tensor([0.1, float('nan')]):
        with pytest.raises(ValueError, match='finite scales of at least 0'):
            bk.attention_table(scale, 8)
    with pytest.raises(ValueError, match=r'take x \[B, N, heads \* d\]'):
        bk.pack_heads(torch.randn(3, 8), 2)
    with pytest.raises(ValueError, match=r'takes a mask \[B, M\]'):
        bk.pack_mask(torch.ones(3, dtype=torch.bool))


@given(head_dim=st.integers(1, 300), scale=st.floats(0, 3))
def test_tables_fall_from_one(head_dim, scale):
    table = bk.attention_table(scale, head_dim)
    assert table.shape == (1, head_dim + 1)
    assert table[0, 0] == 2**30
    assert bool((table.diff() <= 0).all())
    assert bool((table >= 0).all())
