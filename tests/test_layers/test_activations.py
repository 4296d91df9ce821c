"""RPReLU and the non-linearities of blocks against their formulas."""

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins.layers import RPReLU, build_act

SHAPES = [((3, 4, 5, 2), 1), ((6, 4), 1), ((6, 4), -1), ((2, 7, 4), -1), ((2, 4, 4), -1), ((2, 4, 4), 1)]


def filled(channel_dim):
    act = RPReLU(4, channel_dim).double()
    act.gamma.data = torch.tensor([0.3, -0.5, 1.0, 0.0], dtype=torch.float64)
    act.slope.data = torch.tensor([0.25, -0.1, 1.5, 0.0], dtype=torch.float64)
    act.zeta.data = torch.tensor([-0.2, 0.4, 0.0, 2.0], dtype=torch.float64)
    return act


@pytest.mark.parametrize(('shape', 'channel_dim'), SHAPES)
def test_formula_and_gradients(shape, channel_dim):
    """y = x - gamma + zeta above gamma, slope (x - gamma) + zeta below."""
    act = filled(channel_dim)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    g = torch.randn(shape, dtype=torch.float64)
    out = act(x)
    out.backward(g)

    axis = channel_dim % len(shape)
    column = [1] * len(shape)
    column[axis] = 4
    gamma, slope, zeta = (p.detach().numpy().reshape(column) for p in (act.gamma, act.slope, act.zeta))
    moved, g = x.detach().numpy() - gamma, g.numpy()
    np.testing.assert_allclose(out.detach().numpy(), np.where(moved > 0, moved, slope * moved) + zeta, rtol=1e-12)
    dx = g * np.where(moved > 0, 1.0, slope)
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-12)
    np.testing.assert_allclose(act.gamma.grad.numpy(), -dx.sum(others), rtol=1e-10)
    np.testing.assert_allclose(act.zeta.grad.numpy(), g.sum(others), rtol=1e-10)
    np.testing.assert_allclose(act.slope.grad.numpy(), (g * np.minimum(moved, 0)).sum(others), rtol=1e-10, atol=1e-12)


def test_starts_as_prelu():
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(RPReLU(4)(x), nn.PReLU(4)(x))
    assert {name: p.tolist() for name, p in RPReLU(2).named_parameters()} == dict(gamma=[0, 0], slope=[0.25] * 2, zeta=[0, 0])


def test_the_kink_is_the_same_for_both_layouts():
    grads = []
    for channel_dim in (1, -1):
        x = torch.zeros(3, 4, requires_grad=True)
        RPReLU(4, channel_dim)(x).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize('channel_dim', [1, -1])
def test_low_precision_input(channel_dim):
    """Under autocast the input is bfloat16 and the parameters are float32."""
    act = RPReLU(4, channel_dim)
    out = act(torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True))
    assert out.isfinite().all()
    out.sum().backward()
    with torch.autocast('cpu', torch.bfloat16):
        assert act(torch.randn(5, 4)).isfinite().all()
    assert act.bfloat16()(torch.randn(5, 4)).dtype == torch.float32, 'float32 input of a half precision model'


@pytest.mark.parametrize(('name', 'cls'), [('identity', nn.Identity), ('hardtanh', nn.Hardtanh), ('relu', nn.ReLU),
                                           ('prelu', nn.PReLU), ('rprelu', RPReLU)])
def test_build_act(name, cls):
    act = build_act(name, 6)
    assert type(act) is cls
    assert all(p.shape == (6,) for p in act.parameters())
    assert act(torch.randn(2, 6, 3, 3)).shape == (2, 6, 3, 3)


def test_unknown_act():
    with pytest.raises(ValueError, match="unknown act 'rprelo'; did you mean 'rprelu'"):
        build_act('rprelo', 4)


@pytest.mark.parametrize('shape', [(2, 8, 5, 5), (3, 8)])
def test_rprelu_is_the_same_with_and_without_gradients(shape):
    """Without, it keeps nothing. Mutation: the positive part is left out."""
    torch.manual_seed(0)
    act, x = RPReLU(8), torch.randn(shape)
    with torch.no_grad():
        for parameter in act.parameters():
            parameter.normal_()
        found, before = act(x), x.clone()
    assert torch.equal(found, act(x.requires_grad_()))
    assert torch.equal(x, before)
