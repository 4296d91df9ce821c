"""Adaptive gradient clipping against its formula, and in a runner behind a loss scale."""

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins.engine import AdaptiveGradientClippingHook, adaptive_clip_grad_

from .test_hooks import Model, Recorder, runner


@pytest.mark.parametrize('shape', [(5, 4, 3, 3), (6, 7), (8,), ()])
def test_formula(shape):
    weight = nn.Parameter(torch.randn(shape))
    if len(shape) > 1:
        weight.data[0] = 0  # a unit below eps
    weight.grad = torch.randn(shape) * (torch.rand(shape[:1] + (1,) * (len(shape) - 1)) if shape else 5)
    if len(shape) > 1:
        weight.grad[1] = 0
    w, g = weight.detach().numpy(), weight.grad.numpy().copy()
    units = [()] if len(shape) <= 1 else [(o,) for o in range(shape[0])]
    expected, clipped = g.copy(), 0
    for unit in units:
        norm, limit = np.linalg.norm(g[unit]), 0.02 * max(np.linalg.norm(w[unit]), 1e-3)
        if norm > limit:
            expected[unit] = g[unit] * limit / norm
            clipped += 1
    adaptive_clip_grad_([weight])
    assert clipped
    np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-5)


def test_small_gradients_are_left_alone():
    weight = nn.Parameter(torch.randn(4, 9))
    weight.grad = 0.01 * weight.detach().clone()
    before = weight.grad.clone()
    adaptive_clip_grad_([weight, nn.Parameter(torch.ones(2))])  # one without a gradient
    assert torch.equal(weight.grad, before)


@pytest.mark.parametrize('exclude', [('fc',), ()])
def test_in_a_runner(tmp_path, exclude):
    model = Model()
    recorder = Recorder(lambda m: {name: (p.grad.flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1))
                                   for name, p in m.named_parameters() if p.ndim > 1 and p.grad is not None})
    runner(tmp_path, model, [AdaptiveGradientClippingHook(ratio=1e-5, exclude=exclude), recorder], epochs=1, lr=1e-4).train()
    for seen in recorder.after:
        for name, (gradient, weight) in seen.items():
            large = bool((gradient > 1.05e-5 * weight.clamp(min=1e-3)).any())
            assert large == ('fc' in name and bool(exclude)), name


def test_nothing_excluded_by_mistake(tmp_path):
    with pytest.raises(ValueError, match="no parameter has 'classifier' in its name"):
        runner(tmp_path, Model(), [AdaptiveGradientClippingHook(exclude=('classifier',))], epochs=1).train()
