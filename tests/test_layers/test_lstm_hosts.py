"""What hosts do to binary LSTMs: mixed precision, other dtypes, copies, averaged weights, compilation, checkpointing."""

import copy
import io

import pytest
import torch

from .conftest import build, run


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
