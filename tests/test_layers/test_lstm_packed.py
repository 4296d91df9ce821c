"""Packed binary LSTMs: equal to the latent ones, in files, in summaries, in one call of the kernels."""

import copy

import pytest
import torch

import bnn_kernels
from bnn_plugins import load_packed_, pack_, save_packed, set_progress, summarize, verify
from bnn_plugins.binarize import list_methods
from bnn_plugins.deploy import PackedCell
from bnn_plugins.layers import BinaryLSTM

from .conftest import VARIANTS, build


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


def test_packed_weights_load_into_a_packed_model_only(x):
    lstm = build(gates='binary').eval()
    packed = pack_(copy.deepcopy(lstm))
    fresh = BinaryLSTM(12, 8, gates='binary').eval()
    with pytest.raises(ValueError, match=r"weights of a packed model, but the layer 'cells.0.input' is latent"):
        fresh.load_state_dict(packed.state_dict(), strict=False)
    pack_(fresh).load_state_dict(packed.state_dict())
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


@pytest.mark.parametrize('product', ['input', 'hidden'])
def test_one_call_of_the_kernels_is_the_steps(product, x, monkeypatch):
    """The whole sequence at once, and step by step where there are forward hooks: the same bits."""
    packed = pack_(build(gates='binary_if'))
    calls = []
    original = bnn_kernels.binary_lstm
    monkeypatch.setattr(bnn_kernels, 'binary_lstm', lambda *args: calls.append(1) or original(*args))
    once = packed(x)[0]
    assert calls == [1]
    seen = []
    getattr(packed.cells[0], product).register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(packed(x)[0], once)
    assert calls == [1]
    assert len(seen) == (1 if product == 'input' else len(x)), 'the inputs of all steps at once, the hidden states one by one'


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
def test_packed_cells_fold_their_vectors_once(name, change, x, monkeypatch):
    folded, new_steps = [], PackedCell.new_steps
    monkeypatch.setattr(PackedCell, 'new_steps', lambda cell, counts: folded.append(cell) or new_steps(cell, counts))
    lstm = pack_(build(**VARIANTS[name]))
    before = lstm(x)[0]
    (cell,) = (module for module in lstm.modules() if isinstance(module, PackedCell))
    lstm(x)
    assert folded == [cell]
    twin = copy.deepcopy(lstm)
    for _ in range(2):
        CHANGES[change](twin)
        result = twin(x)[0]
        assert torch.equal(result, copy.deepcopy(twin)(x)[0])  # nothing was made from a copy's tensors
    if change in ('in place', 'data'):  # the others go back, or little away
        assert not torch.equal(result, before)
    assert torch.equal(lstm(x)[0], before)
    assert folded.count(cell) == 1


@pytest.mark.parametrize('name', ['plain', 'binary', 'no_bias', 'tau'])
@torch.no_grad()
def test_inputs_of_another_dtype_get_vectors_of_their_own(name, x):
    """In float32 the kernel scales the sums of the inputs, in bfloat16 they are scaled before: in turns, on one layer."""
    lstm = build(**VARIANTS[name]).eval()
    packed = pack_(copy.deepcopy(lstm))
    expected = {dtype: lstm(x.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    for dtype in (torch.float32, torch.bfloat16, torch.float32, torch.bfloat16):
        out, (h, c) = packed(x.to(dtype))
        for found, latent in zip((out, h, c), (expected[dtype][0], *expected[dtype][1]), strict=True):
            assert torch.equal(found, latent)
