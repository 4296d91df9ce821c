"""Estimators: the forward is exactly sign with sign(0) = +1, the gradient is the formula of the paper."""

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins.binarize import Estimator, build_estimator, list_estimators, set_progress, sign

from . import oracle

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.0 + 1e-6, -1.0 - 1e-6, 1.0 - 1e-6, 2.0, -2.0, 1e-30, -1e-30]
LARGE = [30.0, -30.0, 1e4, -1e4, 3e38, -3e38, float('inf'), float('-inf')]
OPTIONS = {'clipped_ste': [dict(clip=0.5), dict(clip=1.5)], 'ede': [dict(t_min=1e-3, t_max=100.0)],
           'swish_sign': [dict(beta=1.0), dict(beta=10.0)], 'soft_sign': [dict(beta=4.0)], 'tanh': [dict(beta=3.0)]}
SPECS = [(name, options) for name in list_estimators() for options in [{}, *OPTIONS.get(name, [])]]


def gradient(estimator, x, upstream=None):
    x = x.detach().clone().requires_grad_()
    estimator(x).backward(torch.ones_like(x) if upstream is None else upstream)
    return x.grad


def test_every_estimator_has_a_formula():
    assert set(list_estimators()) == set(oracle.SURROGATES), 'write the formula of a new estimator in oracle.py'


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize('name', list_estimators())
@pytest.mark.parametrize('needs_grad', [False, True])
def test_forward_is_sign(name, dtype, needs_grad):
    x = torch.cat([torch.tensor(EDGES + LARGE), torch.randn(50)]).to(dtype).requires_grad_(needs_grad)
    out = build_estimator(name)(x)
    assert out.dtype == dtype
    assert out.shape == x.shape
    expected = [-1.0 if value < 0 else 1.0 for value in x.tolist()]  # -0.0 is not below 0
    assert out.tolist() == expected


def test_sign_of_both_zeros_is_plus_one():
    assert sign(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(('name', 'options'), SPECS)
def test_gradient_formula(name, options):
    x = torch.cat([torch.tensor(EDGES, dtype=torch.float64), 3 * torch.randn(200, dtype=torch.float64)])
    upstream = torch.randn_like(x)
    grad = gradient(build_estimator(dict(type=name, **options)), x, upstream)
    expected = upstream.numpy() * oracle.SURROGATES[name](x.numpy(), **options)
    np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize('clip', [0.5, 1.0, 1.5])
def test_clipped_ste_passes_at_its_bound_and_not_beyond(clip):
    beyond = torch.nextafter(torch.tensor(clip), torch.tensor(9.0))
    x = torch.tensor([clip, -clip, beyond, -beyond])
    assert gradient(build_estimator(dict(type='clipped_ste', clip=clip)), x).tolist() == [1, 1, 0, 0]


def test_approx_sign_at_its_kinks_and_its_area():
    estimator = build_estimator('approx_sign')
    assert gradient(estimator, torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, -1.5])).tolist() == [2, 2, 0, 0, 0, 0]
    x = torch.linspace(-2, 2, 40001, dtype=torch.float64)
    assert torch.trapezoid(gradient(estimator, x), x).item() == pytest.approx(2, abs=1e-6)  # the jump of sign


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(('name', 'options'), SPECS)
def test_gradient_is_finite_everywhere_and_keeps_the_dtype(name, options, dtype):
    x = torch.tensor(EDGES + LARGE).to(dtype)
    estimator = build_estimator(dict(type=name, **options))
    for progress in (0.0, 1.0):
        set_progress(estimator, progress)
        grad = gradient(estimator, x)
        assert grad.dtype == dtype
        assert grad.isfinite().all()
        assert name == 'swish_sign' or (grad >= 0).all()
    if name != 'ste':
        assert (grad[len(EDGES) + 2:].abs() < 1e-6).all(), 'saturated at large |x|'


@pytest.mark.parametrize(('progress', 't', 'k'), [(0.0, 0.1, 10.0), (0.5, 1.0, 1.0), (0.75, 10**0.5, 1.0), (1.0, 10.0, 1.0)])
def test_ede_schedule(progress, t, k):
    estimator = build_estimator('ede')
    estimator.set_progress(progress)
    assert estimator.t == pytest.approx(t)
    assert estimator.k == pytest.approx(k)
    x = torch.randn(100, dtype=torch.float64)
    expected = k * t * (1 - np.tanh(t * x.numpy()) ** 2)
    np.testing.assert_allclose(gradient(estimator, x).numpy(), expected, rtol=1e-9, atol=1e-13)


def test_ede_starts_as_the_identity():
    x = torch.linspace(-0.5, 0.5, 11)
    torch.testing.assert_close(gradient(build_estimator(dict(type='ede', t_min=1e-3)), x), torch.ones_like(x))


@pytest.mark.parametrize(('progress', 't'), [(0.0, 1.0), (0.5, 1.0), (0.9, 10**0.7), (1.0, 10.0)])
def test_training_aware_activations_keep_the_area_of_the_jump(progress, t):
    """A triangle of area 2 that is never wider than at t = 1: the schedule of weights begins at t = 0.01."""
    estimator = build_estimator(dict(type='training_aware', activation=True))
    estimator.set_progress(progress)
    x = torch.linspace(-2, 2, 40001, dtype=torch.float64)
    expected = np.maximum(2**0.5 * t - t**2 * np.abs(x.numpy()), 0)
    np.testing.assert_allclose(gradient(estimator, x).numpy(), expected, rtol=1e-9, atol=1e-9)
    assert torch.trapezoid(gradient(estimator, x), x).item() == pytest.approx(2, abs=1e-3)


def test_no_graph_without_grad():
    estimator = build_estimator('approx_sign')
    assert estimator(torch.randn(3)).grad_fn is None
    with torch.no_grad():
        assert estimator(torch.randn(3, requires_grad=True)).grad_fn is None


def test_second_order_gradients_are_refused():
    x = torch.randn(4, requires_grad=True)
    grad, = torch.autograd.grad(build_estimator('approx_sign')(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()


def test_build():
    estimator = build_estimator('ste')
    assert isinstance(estimator, Estimator)
    assert build_estimator(estimator) is estimator
    assert build_estimator('swish_sign').beta == 5
    spec = dict(type='ede', t_min=0.01)
    assert build_estimator(spec).t_min == 0.01
    assert spec == dict(type='ede', t_min=0.01), 'the config is not changed'


@pytest.mark.parametrize(('spec', 'sentence'), [
    ('aprox_sign', "unknown estimator 'aprox_sign'; did you mean 'approx_sign'"),
    ({}, 'unknown estimator None'),
    (dict(type='ede', tmin=0.1), "unknown option of the estimator 'ede' 'tmin'; did you mean 't_min'"),
    (dict(type='ste', clip=1.0), "unknown option of the estimator 'ste' 'clip'"),
    (dict(type='ede', t_min=0.0), '0 < t_min'),
    (dict(type='ede', t_min=2.0, t_max=1.0), 't_min <= t_max'),
])
def test_errors_name_the_nearest(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_estimator(spec)


@pytest.mark.parametrize('progress', [-0.01, 1.01, float('nan'), 60])
def test_progress_is_a_share(progress):
    with pytest.raises(ValueError, match='between 0 and 1'):
        set_progress(nn.Sequential(build_estimator('ede')), progress)


def test_progress_reaches_every_estimator():
    model = nn.ModuleDict(dict(a=build_estimator('ede'), b=nn.Sequential(build_estimator('ede'), nn.ReLU())))
    set_progress(model, 1.0)
    assert model['a'].t == pytest.approx(10)
    assert model['b'][0].t == pytest.approx(10)
