"""BinaryDM's binarizers against numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnn_plugins import pack_
from bnn_plugins.binarize import build_method
from bnn_plugins.binarize.bases import BasisWeight, LSQActivation
from bnn_plugins.layers import BinaryConv2d


def signs(x):
    return np.where(x >= 0, 1.0, -1.0)


def test_two_bases():
    """``sigma_1 sign(W) + sigma_2 sign(W - sigma_1 sign(W))``; exact zeros count as +1."""
    torch.manual_seed(0)
    weight = torch.randn(3, 4, 2, 2, requires_grad=True)
    weight.data[0, 0] = 0
    binarizer = BasisWeight(3)
    binarizer.gains.data = torch.tensor([[1.0, 0.5, 2.0], [1.0, 3.0, 0.25]])
    levels, scale = binarizer(weight)
    w, gains = weight.detach().double().numpy(), binarizer.gains.detach().double().numpy()
    first = gains[0] * np.abs(w).mean((1, 2, 3))
    rest = w - first[:, None, None, None] * signs(w)
    second = gains[1] * np.abs(rest).mean((1, 2, 3))
    assert np.array_equal(levels.detach().numpy(), np.concatenate([signs(w), signs(rest)]))
    np.testing.assert_allclose(scale.detach().numpy(), np.concatenate([first, second]), rtol=1e-6)
    grad = torch.randn_like(levels)
    levels.backward(grad)
    grad = grad.numpy()
    np.testing.assert_allclose(weight.grad.numpy(), grad[:3] * (np.abs(w) <= 1) + grad[3:] * (np.abs(rest) <= 1), rtol=1e-6)


def test_two_bases_are_nearer_to_the_weights_than_one():
    torch.manual_seed(0)
    weight = torch.randn(8, 32, 3, 3)
    errors = []
    for order in (1, 2):
        levels, scale = BasisWeight(8, order)(weight)
        value = sum((levels * scale.view(-1, 1, 1, 1)).chunk(order))
        errors.append(float((value - weight).square().mean().detach()))
    assert errors[1] < 0.4 * errors[0]


def test_the_second_basis_leaves():
    binarizer = BasisWeight(2, until=0.5)
    weight = torch.randn(2, 3)
    full = binarizer(weight)[1].detach()
    binarizer.set_progress(0.25)
    assert torch.equal(binarizer(weight)[1].detach(), full * torch.tensor([1, 1, 0.5, 0.5]))
    binarizer.set_progress(0.75)
    assert not binarizer(weight)[1].detach()[2:].any()
    trained = BinaryConv2d(4, 6, 3, method=dict(type='binarydm', until=0.5))
    trained.weight_binarizer.set_progress(0.5)
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        last = trained(x)
        torch.testing.assert_close(trained.eval()(x), last)
        packed = pack_(trained)
        torch.testing.assert_close(packed(x), last)
    assert packed.weight_bits.shape[0] == 1, 'one basis is packed'


@given(bits=st.integers(2, 8), size=st.floats(0.01, 3), seed=st.integers(0, 99))
def test_lsq(bits, size, seed):
    torch.manual_seed(seed)
    act = LSQActivation(bits)
    act.size.data.fill_(size)
    x = (2 * torch.randn(50)).requires_grad_()
    value = act(x) * act.step
    u = x.detach().numpy() / np.float32(size)
    low, high = -2 ** (bits - 1), 2 ** (bits - 1) - 1
    levels = np.round(u.clip(low, high))  # to even at .5, like torch
    np.testing.assert_allclose(value.detach().numpy(), levels * np.float32(size), rtol=1e-6)
    grad = torch.randn(50)
    value.backward(grad)
    inside = (u >= low) & (u <= high)
    np.testing.assert_allclose(x.grad.numpy(), grad.numpy() * inside, rtol=1e-6)
    expected = (grad.numpy() * np.where(inside, levels - u, u.clip(low, high))).sum()
    np.testing.assert_allclose(act.size.grad.numpy(), [expected], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(('options', 'message'), [
    (dict(order=3), '1 or 2 bases'), (dict(until=0.0), r'in \(0, 1\]'), (dict(a_bits=1), '2 to 8 bits'),
])
def test_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        BinaryConv2d(2, 2, 1, method=dict(type='binarydm', **options))


def test_weights_only():
    method = build_method(dict(type='binarydm', a_bits=32))
    assert method.real_activations
    assert BinaryConv2d(2, 2, 1, method=dict(type='binarydm', a_bits=32)).activation.bits == 32
