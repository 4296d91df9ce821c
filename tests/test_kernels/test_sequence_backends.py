"""Recurrent networks and attention: the engine against the reference, and what goes for every backend."""

import numpy as np
import pytest
import torch
from hypothesis import given

import bnn_kernels as bk
from bnn_kernels import checks, cpu
from bnn_kernels.attention import Planes
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.cpu.sequence import MOST_FEATURES
from bnn_kernels.layout import pack_bits
from bnn_kernels.reference import Reference

from . import cases
from .cases import examples

pytestmark = pytest.mark.sanitize
CPU, REFERENCE = Cpu(), Reference()
ISAS = cpu.available_isas() if bk.available_backends()['cpu'] == 'available' else []
needs_engine = pytest.mark.skipif(not ISAS, reason='the engine was not compiled')


# --- the engine: every instruction set, in every mode bit for bit ------------------------------------------------

def agree(op: str, call: dict) -> bool:
    """Whether every instruction set returns what the reference returns, and leaves its arguments alone."""
    getattr(checks, op)(**call)
    kept = {name: value.clone() for name, value in cases.flat(call).items() if isinstance(value, torch.Tensor)}
    expected = getattr(REFERENCE, op)(**call)
    for isa in ISAS:
        with cpu.set_isa(isa):
            result = getattr(CPU, op)(**call)
        pairs = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
        if not all(cases.same(*pair) for pair in pairs):
            return False
    return all(torch.equal(cases.flat(call)[name], value) for name, value in kept.items())


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
                    recurrence=bk.Recurrence(torch.full((1, 4400), 0.02), gates=gates, candidate=candidate),
                    h_words=cases.words(random, 1, 7, 1100), cell=torch.zeros(1, 7, 1100), lengths=None, pack=True, keep=True)
        assert agree('binary_lstm', call)
    for features in 64, 255:
        q, k, v = (cases.words(random, *shape) for shape in ((1, 7, 1, features), (1, 1500, 1, features), (1, 1, 64, 1500)))
        q[0, 0, 0], k[0, 0, 0], k[0, 1, 0] = 0, 0, pack_bits(torch.ones(features, dtype=torch.bool))  # both ends in one row
        for scale in 0.01, 0.125:
            limit = torch.full((1, 1), 1 / 1500, dtype=torch.float64)
            planes = Planes(('elastic',), limit, bk.attention_table(scale, features))
            assert agree('binary_attention', dict(q_words=q, k_words=k, v_words=v, head_dim=features, planes=planes,
                                                  mask_words=None))


@needs_engine
def test_threads_change_nothing():
    random = np.random.default_rng(1)
    lstm = dict(x=cases.floats(random, 9, 5, 2, 4 * 256), w_words=cases.words(random, 2, 4 * 256, 256),
                recurrence=bk.Recurrence(torch.full((2, 1024), 0.05)), h_words=cases.words(random, 2, 5, 256),
                cell=torch.zeros(2, 5, 256), lengths=torch.tensor([9, 3, 0, 8, 9]), pack=True, keep=True)
    attend = dict(q_words=cases.words(random, 2, 100, 3, 64), k_words=cases.words(random, 2, 100, 3, 64),
                  v_words=cases.words(random, 2, 3, 64, 100), head_dim=64, mask_words=None,
                  planes=Planes(('max_relative',), torch.full((1, 3), 10.0, dtype=torch.float64)))
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
                recurrence=bk.Recurrence(*(cases.floats(random, 1, 160) for _ in range(3)), cases.floats(random, 1, 40)),
                h_words=cases.words(random, 1, 2, 40), cell=torch.zeros(1, 2, 40), lengths=None, pack=False, keep=True)
    assert agree('binary_lstm', call)
    before = CPU.binary_lstm(**call)[0]
    tensor = cases.flat(call)[name]
    tensor.copy_(tensor.flip(1)) if name == 'w_words' else tensor.mul_(-2)
    assert agree('binary_lstm', call)
    assert name == 'threshold' or not torch.equal(before, CPU.binary_lstm(**call)[0])


@needs_engine
def test_large_heads_are_left_to_the_reference():
    words = bk.pack_features(torch.randn(1, 3, 1, MOST_FEATURES + 1))
    values, limit = bk.pack_features(torch.randn(1, 1, 8, 3)), torch.ones(1, 1, dtype=torch.float64)
    y = bk.binary_attention(words, words, values, MOST_FEATURES + 1, limit)
    assert bk.last_backend() == 'reference'
    assert torch.equal(y, REFERENCE.binary_attention(words, words, values, 256, Planes(('bool',), limit), None))
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


def test_prepared_operators_are_the_public_ones():
    q, k, v = (torch.randn(2, tokens, 64) for tokens in (5, 40, 40))
    words = bk.pack_heads(q, 2), bk.pack_heads(k, 2), bk.pack_values(v, 2)
    limit = torch.full((1, 2), 1 / 40, dtype=torch.float64)
    table = bk.attention_table(0.2, 32)
    attention = bk.PreparedOp('binary_attention', head_dim=32, planes=Planes(('elastic',), limit, table))
    given = dict(zip(('q_words', 'k_words', 'v_words'), words, strict=True)) | dict(mask_words=None)
    parameters = bk.Recurrence(torch.full((1, 160), 0.1))
    weight, x = bk.pack_features(torch.randn(1, 160, 40)), torch.randn(4, 3, 1, 160)
    state = torch.zeros(1, 3, 2, dtype=torch.int32), torch.zeros(1, 3, 40)
    scan = bk.PreparedOp('binary_lstm', w_words=weight, recurrence=parameters, lengths=None, pack=True, keep=True)
    for _ in range(2):
        assert torch.equal(attention(**given), bk.binary_attention(*words, 32, limit, rule='elastic', table=table))
        for result, expected in zip(scan(x=x, h_words=state[0], cell=state[1]),
                                    bk.binary_lstm(x, weight, parameters, *state, pack=True), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.compiles
@pytest.mark.parametrize(('backend', 'sizes'), [('aot_eager', [(5, 2), (7, 3)]), ('inductor', [(5, 2)])])
def test_compile_in_one_graph(backend, sizes):
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=len(sizes) > 1)
    for steps, batch in sizes:
        x = torch.randn(steps, batch, 48)
        for result, expected in zip(compiled(x), net(x), strict=True):
            assert torch.equal(result, expected)


@pytest.mark.compiles
def test_export_with_dynamic_lengths():
    net, auto = Net(), torch.export.Dim.AUTO
    program = torch.export.export(net, (torch.randn(5, 2, 48),), dynamic_shapes=({0: auto, 1: auto},))
    x = torch.randn(9, 4, 48)
    for result, expected in zip(program.module()(x), net(x), strict=True):
        assert torch.equal(result, expected)
