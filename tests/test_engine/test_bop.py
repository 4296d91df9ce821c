"""Bop against its algorithm in numpy, and in a runner."""

import copy

import numpy as np
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.engine import Bop
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

COMPUTED = ['xnor', 'irnet', 'rbnn', 'recu', 'rebnn', 'lwsdet', 'bnext', 'bnfree', 'binarydm', 'binaryvit', 'bit']


def wrapper(model, **kwargs):
    return build_optim_wrapper(model, dict(type='OptimWrapper', constructor='bnn_plugins.BinaryOptimWrapperConstructor',
                                           optimizer=dict(type='bnn_plugins.Bop', **kwargs)))


def test_algorithm(rules):
    """m = (1 - gamma) m + gamma g; flip where |m| > threshold and sign(m) = sign(w)."""
    weight = nn.Parameter(torch.randn(4, 6))
    optimizer = Bop([dict(params=[weight], latent=True)], threshold=0.02, gamma=0.3)
    w = np.where(weight.detach().numpy() >= 0, 1.0, -1.0)
    assert set(weight.flatten().tolist()) == {-1.0, 1.0}, 'binary from the start'
    m, flipped = np.zeros_like(w), 0
    for _ in range(20):
        g = 0.1 * torch.randn(4, 6)
        weight.grad = g.clone()
        optimizer.step()
        m = 0.7 * m + 0.3 * g.numpy()
        flip = (np.abs(m) > 0.02) & (np.sign(m) == np.sign(w))
        w, flipped = np.where(flip, -w, w), flipped + flip.sum()
        np.testing.assert_array_equal(weight.detach().numpy(), w)
        assert torch.equal(weight.grad, g), 'gradients are left as they are'
    assert 0 < flipped < 20 * 24


def test_the_rest_is_adam():
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(3)]
    twin = [nn.Parameter(p.detach().clone()) for p in parameters[1:]]
    groups = [dict(params=parameters[:1], latent=True), dict(params=parameters[1:2], lr=0.1), dict(params=parameters[2:])]
    optimizer = Bop(groups, lr=0.01, weight_decay=0.1)
    adam = torch.optim.Adam([dict(params=twin[:1], lr=0.1), dict(params=twin[1:])], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        for p in parameters:
            p.grad = torch.randn(3)
        for p, t in zip(parameters[1:], twin, strict=True):
            t.grad = p.grad.clone()
        optimizer.step()
        adam.step()
        for p, t in zip(parameters[1:], twin, strict=True):
            assert torch.equal(p, t)


@pytest.mark.parametrize('method', list_methods())
def test_methods(method):
    """Plain signs only; the constructor marks the weights of binary layers and names the layer that does not fit."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BinaryConv2d(8, 8, 3, method=method), nn.Flatten(),
                          BinaryLinear(128, 4, method=method))
    if method in COMPUTED:
        with pytest.raises(ValueError, match=f"the method '{method}' of the layer '1' computes them from latents"):
            wrapper(model)
        return
    optim = wrapper(model, threshold=0.0, gamma=0.5, lr=0.01)
    x, y = torch.randn(64, 3, 8, 8), torch.randint(4, (64,))
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optim.update_params(loss)
        losses.append(loss.item())
        for layer in (model[1], model[3]):
            assert (layer.weight.abs() == 1).all()
    assert min(losses[10:]) < losses[0]


def test_resume():
    """State dict of model and optimizer in the middle: the same run."""
    def build():
        torch.manual_seed(0)
        model = BinaryLinear(6, 3, method='binarynet')
        return model, wrapper(model, threshold=0.0, gamma=0.5)

    def steps(model, optim, seeds):
        for seed in seeds:
            torch.manual_seed(seed)
            optim.update_params((model(torch.randn(8, 6)) - 1).square().mean())

    model, optim = build()
    steps(model, optim, range(3))
    saved = copy.deepcopy([model.state_dict(), optim.state_dict()])
    steps(model, optim, range(3, 6))
    again, optim2 = build()
    steps(again, optim2, [9])  # what it keeps of its own state is gone with the state
    again.load_state_dict(saved[0])
    optim2.load_state_dict(saved[1])
    steps(again, optim2, range(3, 6))
    assert torch.equal(model.weight, again.weight)


def test_refusals():
    with pytest.raises(ValueError, match='found no binary weights: set constructor'):
        Bop([nn.Parameter(torch.randn(2))])
    for kwargs in (dict(threshold=-1.0), dict(gamma=0.0), dict(gamma=1.5)):
        with pytest.raises(ValueError, match='threshold >= 0 and 0 < gamma <= 1'):
            Bop([nn.Parameter(torch.randn(2))], **kwargs)
