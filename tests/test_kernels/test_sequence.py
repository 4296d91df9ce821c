"""Recurrent networks and attention: the reference against other arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import recurrence
from bnn_kernels.layout import pack_bits, unpack_bits, unpack_signs
from bnn_kernels.reference import Reference

from . import cases, oracle
from .cases import examples

pytestmark = [pytest.mark.sanitize, pytest.mark.usefixtures('reference_and_chosen')]
REFERENCE = Reference()


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
    call = cases.flat(call)
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


@pytest.mark.parametrize('mask', ['of the sample', 'of each query'])
@pytest.mark.parametrize(('rule', 'limit'), [('max_relative', 2.0), ('elastic', 0.2)])
def test_a_masked_key_is_never_the_best(mask, rule, limit):
    """The key that agrees with the query everywhere is masked: what is compared is the distance to the best of the others.

    The scale is so large that no exponential of the others is left in a table that begins at the masked key.
    """
    torch.manual_seed(0)
    features, keys = 64, 40
    k, v = torch.randn(2, keys, features), torch.randn(2, keys, 5)
    q = k[:, [3, 33]].clone()
    keep = torch.ones(2, 2, keys, dtype=torch.bool)
    keep[:, 0, 3] = keep[:, 1, 33] = False
    if mask == 'of the sample':
        keep = (keep[:, :1] & keep[:, 1:]).expand_as(keep)
    scores = (heads_of(q, 1) @ heads_of(k, 1).transpose(-1, -2)).masked_fill(~keep[:, None], -torch.inf)
    bits = (scores >= scores.amax(-1, keepdim=True) - limit) if rule == 'max_relative' else (3 * scores).softmax(-1) > limit
    assert bool(bits.any(-1).all())
    expected = (bits.double() @ heads_of(v, 1)).transpose(1, 2)
    result = bk.binary_attention(bk.pack_heads(q, 1), bk.pack_heads(k, 1), bk.pack_values(v, 1), features,
                                 torch.full((1, 1), limit, dtype=torch.float64), rule=rule,
                                 table=bk.attention_table(3.0, features) if rule == 'elastic' else None,
                                 mask_words=bk.pack_mask(keep[:, 0] if mask == 'of the sample' else keep))
    assert torch.equal(result.double(), expected)


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


@given(head_dim=st.integers(1, 300), scale=st.floats(0, 3))
def test_tables_fall_from_one(head_dim, scale):
    table = bk.attention_table(scale, head_dim)
    assert table.shape == (1, head_dim + 1)
    assert table[0, 0] == 2**30
    assert bool((table.diff() <= 0).all())
    assert bool((table >= 0).all())


def test_packing_of_heads_and_values():
    x, threshold = oracle.values(1, 2, 5, 3 * 40), oracle.values(2, 3 * 40)
    signs = torch.where(x >= threshold, 1.0, -1.0).unflatten(-1, (3, 40))
    assert torch.equal(unpack_signs(bk.pack_heads(x, 3, threshold), 40), signs)
    assert torch.equal(unpack_signs(bk.pack_values(x, 3, threshold), 5), signs.permute(0, 2, 3, 1))
    mask = torch.rand(2, 50) < 0.5
    assert torch.equal(unpack_bits(bk.pack_mask(mask), 50), mask[:, None])


@pytest.mark.parametrize('dtype', cases.STREAMS)
def test_normalized_packing_where_values_meet_their_level(dtype):
    """The bit is ``weight * (x - mean) / std + bias >= 0``: a level is reached at itself, whatever the sign of the weight."""
    x = torch.arange(-3, 4).to(dtype).view(-1, 1).expand(-1, 2).contiguous()
    mean, std, threshold = torch.full((7,), -1.0), torch.full((7,), 2.0), torch.tensor([0.5, 0.5])  # the level is 0
    words = bk.pack_normalized(x, mean, std, threshold, torch.tensor([False, True]))
    assert unpack_bits(words, 2).int().tolist() == [[0, 1], [0, 1], [0, 1], [1, 1], [1, 0], [1, 0], [1, 0]]
    words = bk.pack_normalized(x, mean, std, threshold, None)
    assert unpack_bits(words, 2).int().tolist() == [[0, 0]] * 3 + [[1, 1]] * 4


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
