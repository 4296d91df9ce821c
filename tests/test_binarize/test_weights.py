"""Weight binarizers: levels, scale and the gradient of the latents against the formulas of the papers."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnn_plugins.binarize import (
    DoReFaWeight,
    LayerSpec,
    ReCUWeight,
    SignWeight,
    StochasticSignWeight,
    build_method,
    list_methods,
    set_progress,
)

from . import oracle

SPECS = [*list_methods(), *(dict(type='dorefa', w_bits=bits) for bits in (2, 3, 4, 8)), dict(type='irnet', t_min=1e-3)]
SCHEDULED = ('irnet', 'rbnn', 'recu', 'bnext')
STANDARDISED = ('irnet', 'rbnn', 'recu', 'bnfree')
SHAPES = [(5, 4, 3, 3), (3, 1, 3, 3), (6, 8), (2, 3, 1, 1)]
EVERY = [*list_methods(), dict(type='binaryconnect', stochastic=True), dict(type='dorefa', w_bits=2, a_bits=2)]


def formula(spec):
    options = dict(type=spec) if isinstance(spec, str) else dict(spec)
    return options.pop('type'), options


def layer(filters, fan_in):
    return LayerSpec(in_channels=1, out_channels=filters, fan_in=fan_in)


def weight_binarizer(spec, shape, dtype=torch.float64):
    return build_method(spec).weight(layer(shape[0], math.prod(shape[1:]))).to(dtype)


def binary_weight(levels, scale):
    """W_b = scale * levels; several bases one behind the other."""
    return levels if scale is None else levels * scale.view(-1, *[1] * (levels.ndim - 1))


def test_every_method_has_a_formula():
    assert set(list_methods()) == set(oracle.WEIGHTS), 'write the formula of a new method in oracle.py'


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize(('spec', 'progress'), [(spec, progress) for spec in SPECS for progress in
                                                ((0.0, 0.1, 0.7, 1.0) if formula(spec)[0] in SCHEDULED else (0.0,))], ids=str)
def test_formula(spec, shape, progress):
    name, options = formula(spec)
    if name in SCHEDULED:
        options['progress'] = progress
    binarizer = weight_binarizer(spec, shape)
    set_progress(binarizer, progress)
    # Learned parameters and buffers are arguments of the formula.
    for key, tensor in (*binarizer.named_parameters(), *binarizer.named_buffers()):
        if key in ('left', 'right'):
            options[key] = tensor.numpy()
        elif key != 'last':
            tensor.data.uniform_(0 if key == 'flips' else -1, 0.01 if key == 'flips' else 2)
            options[key] = tensor.detach().numpy()
    # Latents on both sides of the clipping points, some exactly at them.
    w = 1.3 * torch.randn(shape, dtype=torch.float64)
    if name not in STANDARDISED:
        w.view(-1)[:3] = torch.tensor([1.0, -1.0, 0.0])
    w.requires_grad_()
    levels, scale = binarizer(w)
    product = binary_weight(levels, scale)
    g = torch.randn_like(product)
    product.backward(g)
    expected_levels, expected_scale, dw, *learned = oracle.WEIGHTS[name](w.detach().numpy(), g.numpy().copy(), **options)

    np.testing.assert_array_equal(levels.detach().numpy(), expected_levels)
    if expected_scale is None:
        assert scale is None
    else:
        np.testing.assert_allclose(scale.detach().numpy(), expected_scale, rtol=1e-12)
    np.testing.assert_allclose(w.grad.numpy(), dw, rtol=1e-8, atol=1e-12)
    assert set(dict(binarizer.named_parameters())) == set(learned[0] if learned else ())
    for key, parameter in binarizer.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), learned[0][key], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize('spec', EVERY, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('training', [True, False])
def test_levels_are_exact_in_every_dtype(spec, dtype, training):
    binarizer = weight_binarizer(spec, (6, 5, 3, 3), dtype).train(training)
    set_progress(binarizer, 1.0)  # where an annealed weight has become a sign
    for needs_grad in (True, False):
        levels, scale = binarizer(torch.randn(6, 5, 3, 3).to(dtype).requires_grad_(needs_grad))
        assert levels.dtype == dtype
        assert scale is None or (scale.dtype == dtype and scale.shape in [(6 * binarizer.bases,), (1,)])
        if binarizer.bits == 1:
            assert set(levels.flatten().tolist()) == {-1.0, 1.0}
        else:
            top = 2**binarizer.bits - 1
            assert set(levels.flatten().tolist()) <= set(range(-top, top + 1, 2))


def test_hard_binary_conv_is_not_multiplied_by_alpha():
    """Two filters whose magnitudes differ 100 times get the same gradient; outside of [-1, 1] it is zero."""
    binarizer = SignWeight('clipped_ste', 'channel')
    w = torch.tensor([[0.5, -0.7, 1.0, -1.01], [0.005, -0.007, 0.01, -0.0101]], requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(2, 1)
    binary_weight(*binarizer(w)).backward(g)
    torch.testing.assert_close(w.grad, torch.tensor([[1.0, 2.0, 3.0, 0.0], [1.0, 2.0, 3.0, 4.0]]))


def test_xnor_gradient_by_hand():
    """alpha 1{|W| <= 1} g + sign(W)/n sum(g sign(W)) on a depthwise filter (not centred), n = 2."""
    w = torch.tensor([[[[0.2, -0.6]]]], requires_grad=True)
    levels, scale = build_method('xnor').weight(layer(1, 2))(w)
    binary_weight(levels, scale).backward(torch.tensor([[[[1.0, 3.0]]]]))
    alpha, mixed = 0.4, (1.0 * 1 + 3.0 * -1) / 2
    torch.testing.assert_close(w.grad.flatten(), torch.tensor([alpha * 1 + mixed, alpha * 3 - mixed]))


@pytest.mark.parametrize(('progress', 'tau'), [(0.0, 0.85), (0.5, 0.9028), (1.0, 0.99)])
def test_recu_clamps_at_the_laplace_quantile(progress, tau):
    """Of Laplace distributed latents, the share 2 (1 - tau) lies beyond the quantiles and gets no gradient of its own."""
    n = 2000
    binarizer = ReCUWeight(1, n).double()
    set_progress(binarizer, progress)
    assert binarizer.tau == pytest.approx(tau, abs=1e-4)
    quantiles = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    w = (-0.3 * quantiles.sign() * torch.log1p(-2 * quantiles.abs())).view(1, n).requires_grad_()
    levels, scale = binarizer(w)
    value = binary_weight(levels, scale)[0]
    indices = range(0, n, 5)
    clamped = [not torch.autograd.grad(value[i], w, retain_graph=True)[0].any() for i in indices]
    assert np.mean(clamped) == pytest.approx(2 * (1 - tau), abs=0.015)


@pytest.mark.parametrize('tau', [dict(tau_min=0.5), dict(tau_max=1.0), dict(tau_min=0.9, tau_max=0.8)])
def test_recu_refuses_impossible_quantiles(tau):
    with pytest.raises(ValueError, match=r'0\.5 < tau_min <= tau_max < 1'):
        build_method(dict(type='recu', **tau)).weight(layer(4, 9))


def test_recu_alpha_keeps_the_variance():
    alpha = build_method('recu').weight(layer(5, 64)).alpha
    assert alpha.requires_grad
    torch.testing.assert_close(alpha.detach(), torch.full((5,), 1 / 8))


@pytest.mark.parametrize('shape', [(4, 3, 3, 3), (4, 1, 3, 3), (3, 1, 1, 1), (4, 1), (1, 1), (2, 5)])
@pytest.mark.parametrize('spec', EVERY, ids=str)
@pytest.mark.parametrize('fill', ['zero filter', 'all zero', 'constant', 'tiny'])
def test_degenerate_filters_stay_finite(spec, shape, fill):
    binarizer = weight_binarizer(spec, shape, torch.float32)
    w = torch.randn(shape)
    if fill == 'zero filter':
        w[0] = 0
    else:
        w = {'all zero': torch.zeros(shape), 'constant': torch.full(shape, 0.3), 'tiny': 1e-30 * w}[fill]
    w.requires_grad_()
    levels, scale = binarizer(w)
    product = binary_weight(levels, scale)
    product.backward(torch.randn_like(product))
    assert levels.isfinite().all()
    assert scale is None or scale.isfinite().all()
    assert w.grad.isfinite().all()
    if binarizer.bits == 1 and not binarizer.annealed:
        assert (levels.abs() == 1).all()


@pytest.mark.parametrize('name', ['bireal', 'xnor', 'dorefa', 'reactnet'])
def test_magnitude_scale_is_equivariant(name):
    """Latents twice as large: same levels, twice the scale."""
    binarizer = weight_binarizer(name, (4, 6), torch.float64)
    w = 0.1 * torch.randn(4, 6, dtype=torch.float64)
    levels, scale = binarizer(w)
    doubled, double_scale = binarizer(2 * w)
    assert torch.equal(levels, doubled)
    torch.testing.assert_close(2 * scale, double_scale)


class TestStochastic:
    """BinaryConnect: +1 with probability clip((w + 1) / 2, 0, 1) in training, the sign in evaluation."""

    values = [-1.5, -1.0, -0.6, 0.0, 0.2, 0.9, 1.0, 2.0]

    def test_frequency(self):
        draws = 20000
        w = torch.tensor(self.values).expand(draws, -1).contiguous()
        levels, scale = StochasticSignWeight()(w)
        assert scale is None
        assert set(levels.flatten().tolist()) == {-1.0, 1.0}
        share = (levels > 0).double().mean(0).numpy()
        p = np.clip((np.array(self.values) + 1) / 2, 0, 1)
        # 5 standard deviations; exact where the probability is 0 or 1.
        assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / draws)).all()

    def test_draws_are_independent(self):
        levels, _ = StochasticSignWeight()(torch.zeros(2, 20000))
        correlation = (levels[0] * levels[1]).mean().item()
        assert abs(correlation) < 5 / 20000**0.5
        again, _ = StochasticSignWeight()(torch.zeros(2, 20000))
        assert not torch.equal(levels, again)

    def test_gradient_is_the_identity(self):
        w = torch.tensor(self.values, requires_grad=True)
        g = torch.randn(len(self.values))
        StochasticSignWeight()(w)[0].backward(g)
        assert torch.equal(w.grad, g)

    def test_evaluation_is_the_sign(self):
        binarizer = StochasticSignWeight().eval()
        w = torch.randn(100, 9)
        w[0, :2] = torch.tensor([0.0, -0.0])
        levels, _ = binarizer(w)
        np.testing.assert_array_equal(levels.numpy(), oracle.sign(w.numpy()))
        assert torch.equal(levels, binarizer(w)[0])

    def test_follows_the_seed(self):
        w = torch.zeros(100)
        torch.manual_seed(3)
        first = StochasticSignWeight()(w)[0]
        torch.manual_seed(3)
        assert torch.equal(first, StochasticSignWeight()(w)[0])


@given(bits=st.integers(2, 8), seed=st.integers(0, 2**16), spread=st.floats(1e-3, 5))
def test_dorefa_levels_are_odd_integers_and_reach_the_top(bits, seed, spread):
    w = spread * torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    levels, scale = DoReFaWeight(bits)(w)
    top = 2**bits - 1
    assert levels.abs().max() == top, 'the largest latent is the largest level'
    assert torch.equal(levels, levels.round())
    assert (levels % 2 == 1).all()  # in Python's sense: -3 % 2 == 1
    assert scale.item() == pytest.approx(1 / top)
    flat = w.flatten()
    order = flat.argsort()
    assert (levels.flatten()[order].diff() >= 0).all(), 'monotone'


@pytest.mark.parametrize('bits', [0, 9, 32])
def test_dorefa_refuses_other_widths(bits):
    with pytest.raises(ValueError, match='2 to 8 bits'):
        build_method(dict(type='dorefa', w_bits=bits)).weight(layer(4, 9))


def test_unknown_scale():
    with pytest.raises(ValueError, match="'none', 'channel' or 'layer'"):
        SignWeight(scale='filter')


class TestReBNN:
    """The flip ratio is that of the last optimizer step, counted filter by filter."""

    def test_flips_are_counted(self, rules):
        binarizer = build_method('rebnn').weight(layer(3, 4))
        w = torch.tensor([[1.0, -1, 2, 0], [1, 1, 1, 1], [-1, -1, 0.5, -0.5]])
        assert binarizer.flips.tolist() == [0, 0, 0]
        binarizer.after_step(w)
        assert binarizer.flips.tolist() == [0, 0, 0], 'the first step has nothing to compare with'
        binarizer.after_step(w * torch.tensor([[1.0, -1, 1, 1], [2, 2, 2, 2], [-1, -1, -1, -1]]))
        assert binarizer.flips.tolist() == [0.25, 0, 1]
        binarizer.after_step(w)
        binarizer.after_step(w)
        assert binarizer.flips.tolist() == [0, 0, 0]

    @pytest.mark.parametrize(('flips', 'gamma'), [(0.0, 1e-5), (1e-4, 1e-4), (1.0, 2e-4)])
    def test_balance_is_clipped(self, flips, gamma):
        """Outside of [-1, 1] only the reconstruction error pulls: gamma (W - alpha)."""
        binarizer = build_method('rebnn').weight(layer(1, 2)).double()
        binarizer.alpha.data.fill_(0.5)
        binarizer.flips.fill_(flips)
        w = torch.tensor([[2.0, -3.0]], dtype=torch.float64, requires_grad=True)
        binary_weight(*binarizer(w)).backward(torch.tensor([[1.0, 0.3]], dtype=torch.float64))
        torch.testing.assert_close(w.grad, gamma * torch.tensor([[1.5, -2.5]], dtype=torch.float64))


class TestRBNN:
    def test_rotations_are_orthogonal_and_nearly_square(self):
        for n, rows in ((36, 6), (9, 3), (7, 1), (1, 1), (4608, 64)):
            binarizer = build_method('rbnn').weight(layer(2, n))
            assert (len(binarizer.left), len(binarizer.right)) == oracle.matrix_shape(n) == (rows, n // rows)
            for rotation in (binarizer.left, binarizer.right):
                torch.testing.assert_close(rotation @ rotation.mT, torch.eye(len(rotation)), atol=1e-4, rtol=0)

    def test_update_shrinks_the_angle(self):
        """sum of |R1^T X R2|, which is the cosine times constants, grows with each alternation."""
        binarizer = build_method(dict(type='rbnn', alternations=1)).weight(layer(16, 24)).double()
        w = torch.randn(16, 24, dtype=torch.float64)
        matrices = binarizer._matrices(w)
        norms = [binarizer.rotated(matrices).abs().sum()]
        for _ in range(5):
            binarizer.start_epoch(w)
            norms.append(binarizer.rotated(matrices).abs().sum())
        assert all(later > earlier for earlier, later in itertools.pairwise(norms))
        assert norms[-1] > 1.03 * norms[0]
        torch.testing.assert_close(binarizer.left @ binarizer.left.mT, torch.eye(4, dtype=torch.float64))

    def test_latents_and_angles_are_not_frozen_at_the_start(self):
        binarizer = build_method('rbnn').weight(layer(4, 18))
        w = torch.randn(4, 18, requires_grad=True)
        binary_weight(*binarizer(w)).backward(torch.randn(4, 18))
        assert (w.grad.abs().amax(1) > 1e-3).all()
        assert (binarizer.theta.grad.abs() > 1e-6).all()


class TestBNext:
    @pytest.mark.parametrize('until', [0.3, 1.0])
    def test_ends_in_signs(self, until):
        binarizer = build_method(dict(type='bnext', until=until)).weight(layer(1, 1))
        w = torch.randn(200)
        shares = []
        for progress in (0.0, until / 2, 0.95 * until, until, 1.0):
            set_progress(binarizer, progress)
            levels, scale = binarizer(w)
            assert scale is None
            assert levels.abs().max() <= 1
            shares.append((levels.abs() == 1).float().mean().item())
        assert shares == sorted(shares)
        assert shares[0] < 0.5
        assert shares[3:] == [1.0, 1.0]
        set_progress(binarizer, 1.0)
        assert torch.equal(binarizer(w)[0], torch.where(w >= 0, 1.0, -1.0))

    def test_a_weight_of_zero_has_a_sign_from_the_end_of_the_schedule_on(self):
        binarizer = build_method(dict(type='bnext', until=0.5)).weight(layer(1, 1)).train()
        for progress, expected in ((0.49, 0.0), (0.5, 1.0)):
            set_progress(binarizer, progress)
            assert binarizer(torch.zeros(1))[0].item() == expected

    def test_evaluation_is_the_sign_at_any_temperature(self):
        binarizer = build_method('bnext').weight(layer(1, 1)).eval()
        w = torch.tensor([0.3, -0.1, 0.0, -0.0])
        assert binarizer(w)[0].tolist() == [1, -1, 1, 1]

    @pytest.mark.parametrize('until', [0.0, -0.1, 1.1])
    def test_impossible_schedules(self, until):
        with pytest.raises(ValueError, match='share of the training with a temperature'):
            build_method(dict(type='bnext', until=until)).weight(layer(1, 1))


@pytest.mark.parametrize('name', [name for name in list_methods() if name != 'binaryconnect'])
def test_first_of_two_steps(name):
    """binarize_weights=False: the weight itself, and all of its gradient."""
    method = build_method(dict(type=name, binarize_weights=False))
    binarizer = method.weight(layer(4, 9))
    w = torch.randn(4, 9, requires_grad=True)
    levels, scale = binarizer(w)
    levels.sum().backward()
    assert binarizer.bits == 32
    assert scale is None
    assert torch.equal(levels, w)
    assert torch.equal(w.grad, torch.ones(4, 9))
    assert build_method(name).weight(layer(4, 9)).bits == 1
