"""Adaptive gradient clipping against its formula, and in a runner behind a loss scale."""

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from torch import nn

from bnn_plugins.engine import AdaptiveGradientClippingHook, adaptive_clip_grad_

from .test_hooks import Model, runner


@pytest.mark.parametrize('shape', [(5, 4, 3, 3), (6, 7), (8,), ()])
def test_formula(shape, rules):
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
    seen = []

    class AtStep(Hook):  # behind the step: mmengine has dropped the gradients when an iteration is over
        def before_train(self, runner):
            runner.optim_wrapper.optimizer.register_step_post_hook(lambda *_: seen.extend(
                (name, p.grad.flatten(1).norm(dim=1) > 1.05e-5 * p.detach().flatten(1).norm(dim=1).clamp(min=1e-3))
                for name, p in model.named_parameters() if p.ndim > 1))

    runner(tmp_path, model, [AdaptiveGradientClippingHook(ratio=1e-5, exclude=exclude), AtStep()], epochs=1, lr=1e-4).train()
    assert [name for name, _ in seen] == ['conv.weight', 'fc.weight', 'real.weight'] * 4
    for name, large in seen:
        assert bool(large.any()) == ('fc' in name and bool(exclude)), name


def test_nothing_excluded_by_mistake(tmp_path):
    with pytest.raises(ValueError, match="no parameter has 'classifier' in its name"):
        runner(tmp_path, Model(), [AdaptiveGradientClippingHook(exclude=('classifier',))], epochs=1).train()
