"""Binary LSTMs: the equations, the interface of nn.LSTM, gradients through time, stages, bad input."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from bnn_plugins import pack_, set_progress
from bnn_plugins.binarize import list_methods, sign
from bnn_plugins.layers import BinaryLSTM, BinaryLSTMCell, recurrence
from bnn_plugins.layers.gated_linear import linear_scan

from .conftest import VARIANTS, build, run


def product(part, x, weight_only):
    """The pre-activations of one product in float64: ``[..., gates, units]``."""
    levels = torch.where(part.weight >= 0, 1.0, -1.0).double()
    x = x if weight_only else torch.where(x.float() + part.activation.shift >= 0, 1.0, -1.0).double() \
        if hasattr(part.activation, 'shift') else x
    z = (x @ levels.T).unflatten(-1, (part.gates, -1))
    if part.norm_name == 'none':
        z = z * part.weight.double().abs().mean(1).view(part.gates, -1)
    z = torch.cat([z] * part.replicas, -1)  # each gate by itself
    if part.norm_name == 'ln':
        z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    elif part.norm_name == 'static':
        z = z / (2 * levels.shape[1]) ** 0.5
    return z if part.norm_name == 'none' else z * part.norm.weight.double().view(part.gates, -1)


def step(z, hard):
    return torch.where(z >= 0, 1.0, 0.0).double() if hard else z.sigmoid()


def cell_by_hand(cell, x, state, weight_only):
    """The equations of the classes, step by step, in float64; the outputs and the last state."""
    gated_linear = not hasattr(cell, 'hidden')
    gates, size = 3 if gated_linear else 4, cell.hidden_size
    bias = 0.0 if cell.bias is None else cell.bias.double().view(gates, size)
    (h, c), out = state, []
    for row in x:
        z = product(cell.input, row, weight_only) + bias
        if gated_linear:
            f, fresh, o = z.unbind(-2)
            c = f.sigmoid() * c + (1 - f.sigmoid()) * fresh
            h = o.sigmoid() * c
        else:
            i, f, g, o = (z + product(cell.hidden, h, weight_only)).unbind(-2)
            g = torch.where(g >= 0, 1.0, -1.0).double() if cell.candidate == 'sign' else g.tanh()
            c = step(f, cell.gates != 'soft') * c + step(i, cell.gates != 'soft') * g
            h = step(o, cell.gates == 'binary') * c.tanh()
        out.append(h)
    return torch.stack(out), (h, c)


def by_hand(lstm, x, state, weight_only=False, binary=False):
    """All layers and directions of a BinaryLSTM: outputs, and the last states of each cell."""
    last, x = [], x.double()
    for layer in range(lstm.num_layers):
        outs = []
        for direction in range(lstm.directions):
            index = layer * lstm.directions + direction
            cell = lstm.cells[index]
            out, final = cell_by_hand(cell, x.flip(0) if direction else x, [s[index].double() for s in state], weight_only)
            out = torch.where(out.float() + cell.hidden.activation.shift >= 0, 1.0, -1.0).double() if binary else out
            outs.append(out.flip(0) if direction else out)
            last.append(final)
        x = torch.cat(outs, -1)
    return x, *(torch.stack(s) for s in zip(*last, strict=True))


EQUATIONS = {name: VARIANTS[name] for name in VARIANTS if name not in ('learned_scale', 'two_bits')} | {
    'gated_linear_deep': dict(cell='gated_linear', num_layers=2, expand=dict(tau=2)),
    'tau_ln': dict(expand=dict(tau=2), norm='ln', bidirectional=True), 'tau_no_norm': dict(expand=dict(tau=2), norm='none')}


@pytest.mark.parametrize('name', EQUATIONS)
@pytest.mark.parametrize('given', [False, True], ids=['first state', 'given state'])
@pytest.mark.parametrize('packed', [False, True], ids=['latent', 'packed'])
@torch.no_grad()
def test_equations(name, given, packed, x):
    options = EQUATIONS[name]
    lstm, weight_only = build(**options).eval(), options.get('weight_only', False)
    shape, linear = (len(lstm.cells), 3, 8), options.get('cell') == 'gated_linear'
    state = (torch.full(shape, 0.0 if weight_only or linear else -1.0), torch.zeros(shape))
    state = (torch.randn(shape), torch.randn(shape)) if given else state
    expected = by_hand(lstm, x, state, weight_only, options.get('out') == 'binary')
    out, (h, c) = (pack_(lstm) if packed else lstm)(x, state if given else None)
    for found, values in zip((out, h, c), expected, strict=True):
        torch.testing.assert_close(found.double(), values, rtol=1e-5, atol=1e-5)


def test_a_binary_input_is_that_of_the_first_layer_only(x):
    """What a layer is told of its input is what the layer below emits: real states, or their signs."""
    BinaryLSTM(12, 8, num_layers=2, binary_input=True).train()(sign(x))
    for out, first, second in (('real', 'RSign', 'RSign'), ('binary', 'RSign', 'BinaryInput')):
        lstm = BinaryLSTM(12, 8, num_layers=2, out=out)
        assert [type(cell.input.activation).__name__ for cell in lstm.cells] == [first, second]


def test_first_values():
    cell = BinaryLSTMCell(12, 64)
    assert cell.input.weight.abs().max() <= 64 ** -0.5 < 1.1 * cell.hidden.weight.abs().max()
    assert torch.equal(cell.bias, torch.cat([torch.zeros(64), torch.ones(64), torch.zeros(128)]))
    assert (cell.hidden.norm.weight == 1).all()
    h, c = cell.first_state(torch.zeros(1, 2, 12))
    assert (h == -1).all()
    assert (c == 0).all()
    assert (BinaryLSTMCell(12, 64, weight_only=True).first_state(torch.zeros(1, 2, 12))[0] == 0).all()


@pytest.mark.parametrize('method', list_methods())
def test_pre_activations_start_with_unit_variance(method):
    """Whatever scale a method gives its weights, and however many inputs there are."""
    torch.manual_seed(0)
    cell = BinaryLSTMCell(48, 64, method=method).eval()
    x, h = torch.randn(200, 48), torch.randn(200, 64)
    unsigned = not cell.hidden.activation.signed
    if cell.hidden.gain is not None or unsigned:  # a gain of its own; levels that are not symmetric
        return
    z = cell.input(x) + cell.hidden(h)
    assert 0.7 < z.std() < 1.3


@pytest.mark.parametrize('options', [dict(), dict(norm='ln'), dict(cell='gated_linear'), dict(method='recu')], ids=str)
def test_gain_is_where_the_norms_start(options):
    x = torch.randn(5, 3, 12)
    torch.manual_seed(0)
    one = BinaryLSTM(12, 8, **options).cells[0]
    torch.manual_seed(0)
    three = BinaryLSTM(12, 8, norm_init=3.0, **options).cells[0]
    torch.testing.assert_close(three.input(x), 3 * one.input(x))


def test_gates_are_bits():
    z, c = torch.randn(50, 32), torch.randn(50, 8)
    z[:, ::3] = 0  # the tie: a gate of 0 is open
    h, cell = recurrence.lstm_step(z, c, 'ifo', True, -1, True)
    i, f, g, o = z.chunk(4, -1)
    expected = torch.where(f >= 0, c, 0 * c) + torch.where(i >= 0, sign(g), 0 * g)
    assert torch.equal(cell, expected)
    assert torch.equal(h, torch.where(o >= 0, recurrence.tanh(expected), 0 * o))


def test_gradient_of_a_binary_gate_is_that_of_the_sigmoid():
    z = torch.linspace(-4, 4, 33, requires_grad=True)
    hard, soft, exact = (torch.autograd.grad(recurrence.gate(z, *options).sum(), z)[0]
                         for options in ((True,), (False,), (False, True)))
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(exact, soft)
    exact, soft = (torch.autograd.grad(recurrence.squash(z, exact).sum(), z)[0] for exact in (True, False))
    torch.testing.assert_close(exact, soft, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('options', [VARIANTS[name] for name in VARIANTS if 'ln' not in name.split('_')], ids=str)
def test_fast_training_is_training(options, x, monkeypatch):
    """The scan with its own backward pass against plain autograd: outputs, states and all gradients."""
    lstm = build(**options).train()
    fast = run(lstm, x)
    calls = []
    monkeypatch.setattr(recurrence, 'is_plain', lambda hidden: calls.append(1))
    torch.testing.assert_close(fast, run(lstm, x), rtol=1e-4, atol=1e-5)
    assert calls or options.get('cell') == 'gated_linear'


def test_state_goes_on(lstm, x):
    """Two halves with the state between them are the whole, and the state has a gradient."""
    if lstm.bidirectional:
        return
    lstm.eval()
    whole, (h, c) = lstm(x)
    first, state = lstm(x[:4])
    second, last = lstm(x[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(last, (h, c))
    state = tuple(s.detach().clone().requires_grad_() for s in state)
    lstm.train()
    run(lstm, x[4:], state)
    assert state[1].grad.any()


@pytest.mark.parametrize('options', [dict(), dict(bidirectional=True, num_layers=2), dict(batch_first=True)], ids=str)
def test_interface_of_torch(options):
    x = torch.randn(5, 3, 12)
    ours, theirs = BinaryLSTM(12, 8, **options).eval(), nn.LSTM(12, 8, **options)
    for one, other in ((ours(x), theirs(x)), (ours(x[0]), theirs(x[0]))):
        assert one[0].shape == other[0].shape
        assert [s.shape for s in one[1]] == [s.shape for s in other[1]]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), bidirectional=st.booleans(), layers=st.integers(1, 2))
def test_packed_sequences(lengths, bidirectional, layers):
    """Each sequence of a PackedSequence has the outputs and states that it has alone."""
    lstm = BinaryLSTM(5, 4, layers, bidirectional=bidirectional).eval()
    sequences = [torch.randn(length, 5) for length in lengths]
    packed = pack_sequence(sequences, enforce_sorted=False)
    out, (h, c) = lstm(packed)
    assert torch.equal(out.sorted_indices, packed.sorted_indices)
    padded, found = pad_packed_sequence(out)
    assert found.tolist() == lengths
    for index, sequence in enumerate(sequences):
        alone, state = lstm(sequence)
        torch.testing.assert_close(padded[:len(sequence), index], alone)
        torch.testing.assert_close((h[:, index], c[:, index]), state)


def test_gradients_reach_everything(lstm, x):
    _, grads = run(lstm.train(), x)
    for name, grad in grads.items():
        assert grad.isfinite().all(), name
        assert grad.any(), name


@pytest.mark.parametrize('options', [dict(), dict(gates='binary', candidate='sign'), dict(norm='ln')], ids=str)
def test_gradients_reach_the_first_layer_through_100_steps(options):
    """The gradient of the last output with respect to the first input does not vanish, nor explode."""
    torch.manual_seed(0)
    lstm = BinaryLSTM(32, 64, num_layers=2, **options).train()
    with torch.no_grad():
        for cell in lstm.cells:
            cell.bias[64:128] = 4  # a memory of 100 steps needs open forget gates
    x = torch.randn(100, 4, 32, requires_grad=True)
    lstm(x)[0][-1].sum().backward()
    norms = x.grad.flatten(1).norm(dim=1)
    assert norms[0] > 1e-2 * norms[-1] > 0
    assert norms.max() < 1e3 * norms[-1]
    assert lstm.cells[0].input.weight.grad.norm() > 1e-2 * lstm.cells[1].input.weight.grad.norm()


def test_bits_are_never_binarized_again(x):
    """Between layers of binary outputs the gradient is the identity's; ApproxSign's at -1 and +1 would be zero."""
    lstm = build(num_layers=2, out='binary').train()
    out, grads = run(lstm, x)
    assert set(out.unique().tolist()) == {-1, 1}
    assert grads['cells.0.input.weight'].any()
    signs = BinaryLSTM(12, 8, binary_input=True).train()
    assert run(signs, sign(x))[1]['input'].any()
    again = BinaryLSTM(12, 8).train()
    assert not run(again, sign(x))[1]['input'].any(), 'what the switch is for'
    with pytest.raises(ValueError, match='told that its input is binary'):
        BinaryLSTM(12, 8, binary_input=True).train()(x)


@pytest.mark.parametrize('wrong', [0.5, 0.0, -2.0])
@pytest.mark.parametrize('share', ['one number', 'one of a thousand', 'all'])
def test_an_input_that_is_not_binary_is_refused(wrong, share):
    """However few of its values are others than -1 and +1."""
    lstm, x = BinaryLSTM(12, 8, binary_input=True).train(), sign(torch.randn(7, 30, 12))
    lstm(x)
    lstm, flat = BinaryLSTM(12, 8, binary_input=True).train(), x.flatten()
    flat[{'one number': slice(100, 101), 'one of a thousand': slice(0, None, 1000), 'all': slice(None)}[share]] = wrong
    with pytest.raises(ValueError, match='other values than -1 and'):
        lstm(flat.view_as(x))


@pytest.mark.parametrize('layers', [1, 2, 3])
@pytest.mark.parametrize('bidirectional', [False, True])
def test_dropout_is_between_layers_only(layers, bidirectional):
    """All of it: every layer but the first sees zeros, and what leaves the last one is whole."""
    lstm, x = build(num_layers=layers, bidirectional=bidirectional, dropout=1.0).train(), torch.randn(5, 3, 12)
    twin = build(num_layers=layers, bidirectional=bidirectional).train()
    twin.load_state_dict(lstm.state_dict())
    if layers > 1:
        out = lstm(x)[0]
        seen = torch.zeros(5, 3, 16 if bidirectional else 8)
        cells = lstm.cells[-lstm.directions:]
        forward = cells[0].scan(seen)[0]
        backward = [cell.scan(seen)[0].flip(0) for cell in cells[1:]]
        torch.testing.assert_close(out, torch.cat([forward, *backward], -1))
        assert not torch.allclose(out, twin(x)[0])
    else:
        torch.testing.assert_close(lstm(x)[0], twin(x)[0])
    assert torch.equal(lstm.eval()(x)[0], twin.eval()(x)[0])


def test_stages(x):
    lstm = build(gates='binary', candidate='sign', soft_until=0.5)
    soft = build()
    soft.load_state_dict(lstm.state_dict())
    hard = build(gates='binary', candidate='sign')
    hard.load_state_dict(lstm.state_dict())
    for model in (lstm, soft, hard):
        model.eval()
    assert torch.equal(lstm(x)[0], hard(x)[0]), 'told nothing: as named'
    set_progress(lstm, 0.49)
    assert torch.equal(lstm(x)[0], soft(x)[0])
    assert torch.equal(pack_(copy.deepcopy(lstm))(x)[0], hard(x)[0]), 'bits have the gates of the last stage'
    set_progress(lstm, 0.5)
    assert torch.equal(lstm(x)[0], hard(x)[0])
    assert not torch.equal(soft(x)[0], hard(x)[0])


def test_expansion_tiles_each_gate_by_itself(x):
    """tau 2: the weights of half as many, twice as deep filters; the gates of one unit read different filters."""
    lstm = BinaryLSTM(12, 8, expand=dict(tau=2)).eval()
    cell = lstm.cells[0]
    assert cell.hidden.weight.shape == (8, 8)
    z = cell.hidden(torch.randn(3, 8)).unflatten(-1, (4, 4, 2))  # gate, copy, filter
    assert torch.equal(z, z[:, :, :1].expand_as(z))
    assert not torch.equal(z[:, 0], z[:, 1])


@settings(max_examples=30, deadline=None)
@given(steps=st.integers(1, 20), units=st.integers(1, 5))
def test_linear_scan(steps, units):
    a, b = torch.rand(steps, 2, units, dtype=torch.float64), torch.randn(steps, 2, units, dtype=torch.float64)
    c, expected = torch.zeros(2, units, dtype=torch.float64), []
    for t in range(steps):
        c = a[t] * c + b[t]
        expected.append(c)
    torch.testing.assert_close(linear_scan(a, b), torch.stack(expected))


@pytest.mark.parametrize(('options', 'message'), [
    (dict(gates='bin'), "unknown gates 'bin'"), (dict(candidate='relu'), "unknown candidate 'relu'"),
    (dict(norm='bn'), "unknown norm 'bn'"), (dict(cell='gru'), "unknown cell 'gru'"), (dict(out='bits'), "unknown out 'bits'"),
    (dict(method='reactnot'), "did you mean 'reactnet'"), (dict(soft_until=2), 'share of the training'),
    (dict(out='binary', weight_only=True), "use out='real'"), (dict(out='binary', num_layers=2, dropout=0.1), 'make zeros'),
    (dict(weight_only=True, method=dict(type='reactnet', binarize_weights=False)), 'nothing binary'),
], ids=str)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        BinaryLSTM(12, 8, **options)


def test_unknown_arguments_and_shapes(x):
    with pytest.raises(TypeError, match="did you mean 'gates'"):
        BinaryLSTM(12, 8, gate='soft')
    with pytest.raises(ValueError, match=r'takes \[T, N, 12\]'):
        BinaryLSTM(12, 8)(x[..., :5])
