"""Binary LSTMs: the equations, the interface of nn.LSTM, gradients through time, stages, packing."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import bnn_kernels
from bnn_plugins import load_packed_, pack_, save_packed, set_progress, summarize, verify
from bnn_plugins.binarize import list_methods, sign
from bnn_plugins.deploy import PackedCell
from bnn_plugins.layers import BinaryConvLSTM, BinaryLSTM, BinaryLSTMCell, recurrence
from bnn_plugins.layers.gated_linear import linear_scan

VARIANTS = {
    'plain': {},
    'binary_if': dict(gates='binary_if'),
    'binary': dict(gates='binary', candidate='sign'),
    'weight_only': dict(weight_only=True),
    'no_norm': dict(norm='none'),
    'ln': dict(norm='ln'),
    'ln_inputs': dict(norm=('ln', 'static')),
    'tau': dict(expand=dict(tau=2, spread=0.3)),
    'deep': dict(num_layers=2, bidirectional=True),
    'bits_out': dict(num_layers=2, out='binary'),
    'no_bias': dict(bias=False),
    'gated_linear': dict(cell='gated_linear', bidirectional=True),
    'learned_scale': dict(method='recu'),
    'two_bits': dict(method=dict(type='dorefa', w_bits=2, a_bits=2)),
}


def build(**options) -> BinaryLSTM:
    lstm = BinaryLSTM(12, 8, **options)
    for p in lstm.parameters():  # gains, biases and thresholds away from their first values
        if p.ndim == 1:
            p.data = p + 0.3 * torch.rand_like(p)
    return lstm


@pytest.fixture(params=VARIANTS)
def lstm(request):
    return build(**VARIANTS[request.param])


@pytest.fixture
def x():
    return torch.randn(7, 3, 12)


def run(lstm, x, state=None):
    """Outputs, and the gradients of all parameters and of the input."""
    lstm.zero_grad()
    x = x.clone().requires_grad_()
    out, (h, c) = lstm(x, state)
    ((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum() + h.sum() + c.square().sum()).backward()
    return out, {'input': x.grad, **{name: p.grad.clone() for name, p in lstm.named_parameters()}}


def by_hand(cell, x):
    """The equations of the class, step by step, with the default method and static norms."""
    size = cell.hidden_size
    levels = sign(cell.input.weight), sign(cell.hidden.weight)
    h, c, out = -torch.ones(x.shape[1], size), torch.zeros(x.shape[1], size), []
    for row in x:
        parts = zip((row, h), (cell.input, cell.hidden), levels, strict=True)
        z = sum(sign(v + p.activation.shift) @ w.T * p.norm.weight / (2 * p.in_features) ** 0.5 for v, p, w in parts)
        i, f, g, o = (z + cell.bias).split(size, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out), h, c


def test_equations(x):
    lstm = build().eval()
    out, (h, c) = lstm(x)
    for found, expected in zip((out, h[0], c[0]), by_hand(lstm.cells[0], x), strict=True):
        torch.testing.assert_close(found, expected)


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
    three = BinaryLSTM(12, 8, gain=3.0, **options).cells[0]
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


@pytest.mark.parametrize('method', list_methods())
def test_every_method_trains_and_packs(method, x, tmp_path):
    lstm = BinaryLSTM(12, 8, method=method).train()
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.05)
    first = lstm(x)[0].detach()
    for _ in range(3):
        optimizer.zero_grad()
        lstm(x)[0].sub(0.5).square().mean().backward()
        optimizer.step()
    assert lstm(x)[0].isfinite().all()
    assert not torch.equal(lstm(x)[0], first)
    set_progress(lstm, 1.0)
    lstm.eval()
    assert torch.equal(pack_(copy.deepcopy(lstm))(x)[0], lstm(x)[0])


def test_packed_equals_latent(lstm, x):
    lstm.eval()
    packed = pack_(copy.deepcopy(lstm))
    for found, expected in zip((packed(x)[0], *packed(x)[1]), (lstm(x)[0], *lstm(x)[1]), strict=True):
        assert torch.equal(found, expected)
    report = verify(lstm, packed, x)
    assert report.ok
    products = sum(1 for name, _ in lstm.named_modules() if name.endswith(('input', 'hidden')))
    real = lstm.cells[0].input.activation.bits == 32
    assert sum(row.positions > 0 for row in report.rows) == (0 if real else products)
    with pytest.raises(ValueError, match='is packed already'):
        pack_(packed)


def test_verify_finds_a_wrong_bit_of_the_hidden_product(x):
    lstm = build().eval()
    packed = pack_(copy.deepcopy(lstm))
    packed.cells[0].hidden.weight_bits[0, 3, 0] ^= 1
    assert [row.name for row in verify(lstm, packed, x).rows if row.violations] == ['cells.0.hidden']


def test_packed_file(lstm, x, tmp_path, request):
    options = VARIANTS[request.node.callspec.params['lstm']]
    expected = lstm.eval()(x)[0]
    path = save_packed(pack_(lstm), tmp_path / 'lstm.safetensors')
    assert torch.equal(load_packed_(BinaryLSTM(12, 8, **options), path)(x)[0], expected)
    if lstm.cells[0].__class__.__name__ == 'PackedCell':
        other = 'binary_if' if options.get('gates', 'soft') == 'soft' else 'soft'
        with pytest.raises(ValueError, match='is for another config'):
            load_packed_(BinaryLSTM(12, 8, **{**options, 'gates': other}), path)
        with pytest.raises(ValueError, match='is for another config'):
            load_packed_(BinaryLSTM(12, 8, **{**options, 'norm': 'static' if options.get('norm') else 'ln'}), path)


def test_packed_weights_load_into_a_latent_model(x):
    lstm = build(gates='binary').eval()
    packed = pack_(copy.deepcopy(lstm))
    fresh = BinaryLSTM(12, 8, gates='binary').eval()
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh(x)[0], lstm(x)[0])


def test_summary_counts():
    """BOPs of all steps, bytes of the bits."""
    summary = summarize(BinaryLSTM(64, 32, batch_first=True), torch.randn(2, 5, 64))
    assert [row.bops for row in summary.rows[:2]] == [5 * 64 * 128, 5 * 32 * 128]
    assert [row.params_binary for row in summary.rows[:2]] == [64 * 128, 32 * 128]
    assert [row.bytes_packed for row in summary.rows[:2]] == [64 * 128 // 8 + 4 * (128 + 64), 32 * 128 // 8 + 4 * (128 + 32)]


def test_summary_of_a_packed_model_is_that_of_the_latent_one(lstm, x):
    expected = summarize(lstm, x).totals
    packed = pack_(lstm)
    found = summarize(packed, x).totals
    assert (found.bops, found.flops, found.bytes_packed) == (expected.bops, expected.flops, expected.bytes_packed)


def test_one_call_of_the_kernels_is_the_steps(x, monkeypatch):
    """The whole sequence at once, and step by step where somebody watches: the same bits."""
    packed = pack_(build(gates='binary_if'))
    calls = []
    original = bnn_kernels.binary_lstm
    monkeypatch.setattr(bnn_kernels, 'binary_lstm', lambda *args: calls.append(1) or original(*args))
    once = packed(x)[0]
    assert calls == [1]
    packed.cells[0].hidden.register_forward_hook(lambda *_: None)
    assert torch.equal(packed(x)[0], once)
    assert calls == [1]


def negative(lstm) -> dict:
    return {key: -value if value.is_floating_point() else value for key, value in lstm.state_dict().items()}


CHANGES = {
    'in place': lambda lstm: [p.mul_(-1.5) for p in lstm.parameters() if p.is_floating_point()],
    'data': lambda lstm: [setattr(p, 'data', p.data * -1.5) for p in lstm.parameters() if p.is_floating_point()],
    'load': lambda lstm: lstm.load_state_dict(negative(lstm)),
    'assign': lambda lstm: lstm.load_state_dict(negative(lstm), assign=True),
    'to': lambda lstm: lstm.to(torch.bfloat16).to(torch.float32),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('name', ['plain', 'binary', 'no_norm', 'tau'])
@torch.no_grad()
def test_packed_cells_fold_their_vectors_once(name, change, x):
    lstm = pack_(build(**VARIANTS[name]))
    before = lstm(x)[0]
    (cell,) = (module for module in lstm.modules() if isinstance(module, PackedCell))
    kept = vars(cell)['_kept']
    lstm(x)
    assert vars(cell)['_kept'] is kept
    twin = copy.deepcopy(lstm)
    for _ in range(2):
        CHANGES[change](twin)
        result = twin(x)[0]
        assert torch.equal(result, copy.deepcopy(twin)(x)[0])  # a copy has kept nothing
    if change in ('in place', 'data'):  # the others go back, or little away
        assert not torch.equal(result, before)
    assert torch.equal(lstm(x)[0], before)


def test_amp_trains(lstm, x):
    exact, _ = run(lstm.train(), x)
    with torch.autocast('cpu', torch.bfloat16):
        out, grads = run(lstm, x)
    assert all(grad.isfinite().all() and grad.any() for grad in grads.values())
    assert (out.float() - exact).abs().median() < 0.02
    lstm.eval()
    with torch.autocast('cpu', torch.bfloat16):
        rounded = lstm(x)[0]
    assert torch.equal(rounded, lstm(x)[0]), 'what is evaluated is what the bits compute'


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype, x):
    """A converted model gives its own dtype; float64 is not rounded on the way, whatever the mode."""
    lstm, x = build(gates='binary_if').to(dtype), x.to(dtype)
    out, grads = run(lstm.train(), x)
    assert out.dtype == dtype
    assert all(grad.isfinite().all() for grad in grads.values())
    if dtype == torch.float64:
        for p in lstm.cells[0].parameters():
            p.data += 1e-12 * torch.rand_like(p)
        assert torch.equal(lstm.eval()(x)[0], lstm.train()(x)[0])
        assert not torch.equal(lstm(x)[0], out)


def test_deepcopy_state_dict_ema(lstm, x):
    from mmengine.model import ExponentialMovingAverage

    lstm.eval()
    expected = lstm(x)[0]
    assert torch.equal(copy.deepcopy(lstm)(x)[0], expected)
    file = io.BytesIO()
    torch.save(lstm.state_dict(), file)
    file.seek(0)
    fresh = copy.deepcopy(lstm)
    for p in fresh.parameters():
        p.data.neg_()
    assert not torch.equal(fresh(x)[0], expected)
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(fresh(x)[0], expected)
    ema = ExponentialMovingAverage(lstm, momentum=0.5, update_buffers=True)
    ema.update_parameters(lstm)
    assert torch.equal(ema(x)[0], expected)


@pytest.mark.parametrize('options', [dict(gates='binary_if'), dict(cell='gated_linear')], ids=str)
def test_compile(options, x):
    torch._dynamo.reset()
    lstm = build(**options).train()
    compiled = torch.compile(lstm, backend='aot_eager', fullgraph=True)
    found, expected = run(compiled, x[:2]), run(lstm, x[:2])
    torch.testing.assert_close((found[0], [*found[1].values()]), (expected[0], [*expected[1].values()]), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_checkpointing_gives_the_same_gradients(x):
    from torch.utils.checkpoint import checkpoint

    lstm = build().train()
    _, expected = run(lstm, x)
    lstm.zero_grad()
    x = x.clone().requires_grad_()
    out, (h, c) = checkpoint(lstm, x, use_reentrant=False)
    ((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum() + h.sum() + c.square().sum()).backward()
    torch.testing.assert_close(x.grad, expected['input'])
    torch.testing.assert_close(lstm.cells[0].hidden.weight.grad, expected['cells.0.hidden.weight'])


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


# Maps.

CONV_VARIANTS = [dict(), dict(gates='binary', candidate='sign'), dict(norm='ln'), dict(weight_only=True, norm='none'),
                 dict(num_layers=2, out='binary'), dict(expand=dict(tau=2)), dict(pad_value=-1)]


@pytest.fixture(params=CONV_VARIANTS, ids=str)
def conv_lstm(request):
    return BinaryConvLSTM(6, 8, batch_first=True, **request.param)


def test_maps(conv_lstm):
    """Shapes, gradients, the state between two halves of a clip, packing."""
    clip = torch.randn(2, 4, 6, 5, 7, requires_grad=True)
    out, states = conv_lstm.train()(clip)
    assert out.shape == (2, 4, 8, 5, 7)
    (out.sum() + sum(c.square().sum() for _, c in states)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in conv_lstm.parameters())
    conv_lstm.eval()
    with torch.no_grad():
        whole, states = conv_lstm(clip)
        first, middle = conv_lstm(clip[:, :1])
        second, last = conv_lstm(clip[:, 1:], middle)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(last[-1][1], states[-1][1])
    packed = pack_(copy.deepcopy(conv_lstm))
    assert torch.equal(packed(clip)[0], whole)
    assert verify(conv_lstm, packed, clip).ok


def test_outside_of_the_map_the_hidden_bits_are_the_first_ones():
    cell = BinaryConvLSTM(6, 8).eval().cells[0]
    assert cell.hidden.pad_value == -1
    z = cell.hidden(-torch.ones(1, 8, 5, 7))
    assert torch.equal(z, z[..., :1, :1].expand_as(z)), 'no border before the first frame'
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        BinaryConvLSTM(6, 8, kernel_size=2)
    with pytest.raises(ValueError, match='takes clips'):
        BinaryConvLSTM(6, 8)(torch.zeros(1, 6, 5, 7))
