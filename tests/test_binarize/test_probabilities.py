"""Binarizers of attention probabilities: bits and gradients against numpy, integer thresholds against the kernels' rules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bnn_kernels
from bnn_kernels import attention as kernels
from bnn_plugins.binarize import build_probability, list_probabilities
from bnn_plugins.binarize.elastic import ElasticActivation, positive
from bnn_plugins.binarize.probabilities import near

BINARY = [name for name in list_probabilities() if name != 'none']
SPECS = {'elastic': dict(type='elastic', initial=0.1), 'bool': 'bool', 'max_relative': dict(type='max_relative', share=0.25),
         'multi_plane': dict(type='multi_plane', initial=0.3), 'gsb': dict(type='gsb', initial=0.15)}
D = 16
SCALE = D ** -0.5


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def random_scores(*shape):
    """Integers of the parity of D between -D and D."""
    return (D - 2 * torch.randint(0, D + 1, shape)).double()


# ---- the formulas, once more: A, and what is multiplied with g for the gradient of P (or of s S) and of a ------------------


def elastic(p, s, a):
    u = p / a
    return a * (u > 0.5), ('P', (u <= 1) * 1.0), (u > 1) + (u <= 1) * ((u > 0.5) - u)


def boolean(p, s, a):
    return (s > 0) * 1.0, ('logits', (np.abs(s) <= 1) * 1.0), None


def max_relative(p, s, a):
    return (p >= 0.25 * p.max(-1, keepdims=True)) * 1.0, ('P', np.ones_like(p)), None


def multi_plane(p, s, a, n=3):
    u = p / a
    q = np.clip(np.ceil(n * u - 0.5), 0, n)  # a tie rounds down: the comparison is strict
    return a / n * q, ('P', (u <= 1) * 1.0), q / n - (u <= 1) * u


def gsb(p, s, a):
    u, top = p / a, p.max(-1, keepdims=True)
    planes = (u > 0.5) + 0.5 * (p > 0.7 * top) + 0.5 * (p > 0.9 * top)
    dp = (u <= 1) * 1.0 + 2 * 0.5 * a / top
    da = planes - (u <= 1) * u
    return a * planes, ('P', dp), da


FORMULAS = {'elastic': elastic, 'bool': boolean, 'max_relative': max_relative, 'multi_plane': multi_plane, 'gsb': gsb}


def test_every_binarizer_has_a_formula():
    assert set(BINARY) == set(FORMULAS) == set(SPECS)


@pytest.mark.parametrize('name', BINARY)
def test_bits_and_gradients(name):
    binarizer = build_probability(SPECS[name], heads=1).double()
    scores = random_scores(2, 1, 9, 12)
    logits = (scores * SCALE).requires_grad_()
    planes = binarizer(scores, D, SCALE, None, logits)
    value = sum(plane * step for plane, step in zip(planes, binarizer.steps(), strict=True))
    g = torch.randn_like(value)
    value.backward(g)

    s = logits.detach().numpy()
    p, size = softmax(s), float(binarizer.size.detach()) if hasattr(binarizer, 'size') else None
    expected, (of, factor), da = FORMULAS[name](p, s, size)
    np.testing.assert_allclose(value.detach().numpy(), expected, rtol=1e-9)
    d = g.numpy() * factor
    if of == 'P':
        d = p * (d - (p * d).sum(-1, keepdims=True))
    np.testing.assert_allclose(logits.grad.numpy(), d, rtol=1e-6, atol=1e-12)
    if da is not None:
        np.testing.assert_allclose(binarizer.size.grad.numpy(), (g.numpy() * da).sum(), rtol=1e-6)
    if name == 'gsb':
        top = p.max(-1, keepdims=True)
        extra = [(g.numpy() * size * (p > share * top)).sum() for share in (0.7, 0.9)]
        np.testing.assert_allclose(binarizer.extra.grad.numpy(), extra, rtol=1e-9)


@pytest.mark.parametrize('name', BINARY)
def test_bits_are_bits_and_masked_keys_have_none(name):
    binarizer = build_probability(SPECS[name], heads=2)
    scores, keep = random_scores(3, 2, 5, 7).float(), torch.rand(3, 1, 1, 7) > 0.4
    keep[0] = False
    logits = (scores * SCALE).requires_grad_()
    planes = binarizer(scores, D, SCALE, keep, logits)
    assert len(planes) == binarizer.planes
    total = 0
    for bits in planes:
        assert set(bits.unique().tolist()) <= {0.0, 1.0}
        assert not bits.masked_select(~keep).any()
        total = total + (bits * torch.randn_like(bits)).sum()
    total.backward()
    assert logits.grad.isfinite().all()
    # Keys that are left out are as good as not there.
    for b in (1, 2):
        some = keep[b, 0, 0]
        alone = binarizer(scores[b:b + 1, ..., some], D, SCALE)
        for bits, other in zip(planes, alone, strict=True):
            assert torch.equal(bits[b:b + 1, ..., some], other)


@given(data=st.data(), name=st.sampled_from(BINARY), d=st.integers(1, 70), heads=st.integers(1, 3),
       size=st.floats(1e-4, 1.5), share=st.sampled_from([1.0, 0.5, 0.25, math.exp(-2), 0.01]), masked=st.booleans())
def test_the_rules_are_those_of_the_kernels(data, name, d, heads, size, share, masked):
    """Bit for bit, ties included: the packed attention takes the rules and computes the bits in its own way."""
    options = dict(share=share) if name == 'max_relative' else {} if name == 'bool' else dict(initial=size)
    binarizer = build_probability(dict(type=name, **options), heads=heads)
    keys = data.draw(st.integers(1, 9))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    m = torch.randint(0, d + 1, (2, heads, 4, keys))
    keep = torch.rand(2, 1, 1, keys) > 0.3 if masked else None
    scale = d ** -0.5
    planes = binarizer((d - 2 * m).float(), d, scale, keep)
    for bits, (rule, limit) in zip(planes, binarizer.rules(scale), strict=True):
        expected = kernels.bits(m, torch.ones(1, dtype=torch.bool) if keep is None else keep, rule,
                                limit.detach().expand(heads), bnn_kernels.attention_table(scale, d), d)
        assert torch.equal(bits.bool(), expected)


@pytest.mark.parametrize('name', ['elastic', 'multi_plane', 'gsb'])
def test_a_query_without_keys_teaches_nothing(name):
    """Its softmax is even over keys that do not take part."""
    binarizer, keep = build_probability(SPECS[name]), torch.zeros(1, 1, 1, 7, dtype=torch.bool)
    scores = random_scores(1, 1, 5, 7).float()
    logits = (scores * SCALE).requires_grad_()
    sum(bits.sum() for bits in binarizer(scores, D, SCALE, keep, logits)).backward()
    assert not logits.grad.any()
    assert binarizer.size.grad is None or not binarizer.size.grad.any()


@pytest.mark.parametrize(('strict', 'expected'), [(False, 4.0), (True, 2.0)])
def test_a_share_that_is_met_exactly(strict, expected):
    """Scores are even distances apart: 4 below the best is exp(-2) of its probability at a scale of 1/2, no more."""
    assert near(math.exp(-2), 0.5, strict)[1].item() == expected


def test_ties():
    """Two keys of one score have P = 1/2 exactly: the elastic rule is strict, the relative one is not."""
    scores = torch.zeros(1, 1, 1, 2)
    assert not build_probability(dict(type='elastic', initial=1.0))(scores, 2, 1.0)[0].any(), 'P = a / 2'
    assert build_probability(dict(type='elastic', initial=0.999))(scores, 2, 1.0)[0].all()
    assert build_probability(dict(type='max_relative', share=1.0))(scores, 2, 1.0)[0].all()
    assert not build_probability('bool')(scores, 2, 1.0)[0].any(), 'S = 0 is not above 0'


def test_the_docstring_of_the_relative_rule():
    rule, limit = build_probability('max_relative').rules(64 ** -0.5)[0]
    assert (rule, limit.item()) == ('max_relative', 10)


@pytest.mark.parametrize(('spec', 'sentence'), [
    ('elastik', "did you mean 'elastic'"),
    (dict(type='elastic', intial=1.0), "did you mean 'initial'"),
    (dict(type='max_relative', share=0.0), r'in \(0, 1\], but got 0.0'),
    (dict(type='multi_plane', planes=0), 'at least one plane'),
])
def test_errors(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_probability(spec)


class TestElasticActivation:
    @pytest.mark.parametrize('signed', [True, False])
    def test_formula(self, signed):
        binarizer = ElasticActivation(3, -1, signed, initial=0.7).double()
        binarizer.shift.data = torch.tensor([0.1, -0.2, 0.0], dtype=torch.float64)
        x = torch.randn(50, 3, dtype=torch.float64, requires_grad=True)
        value = binarizer(x) * binarizer.step
        g = torch.randn_like(value)
        value.backward(g)
        u = (x.detach().numpy() + binarizer.shift.detach().numpy()) / 0.7
        if signed:
            level, inside = np.where(u >= 0, 1.0, -1.0), np.abs(u) <= 1
            da = level
        else:
            level, inside = np.clip(np.round(u), 0, 1), (u >= 0) & (u <= 1)
            da = (u > 1) + inside * (np.round(u) - u)
        np.testing.assert_allclose(value.detach().numpy(), 0.7 * level, rtol=1e-6)
        np.testing.assert_allclose(x.grad.numpy(), g.numpy() * inside, rtol=1e-6)
        np.testing.assert_allclose(binarizer.shift.grad.numpy(), (g.numpy() * inside).sum(0), rtol=1e-6)
        np.testing.assert_allclose(binarizer.size.grad.numpy(), (g.numpy() * da).sum(), rtol=1e-6)

    def test_a_step_below_the_floor_comes_back(self):
        size = torch.nn.Parameter(torch.tensor([-0.1]))
        assert positive(size).item() == pytest.approx(1e-5)
        positive(size).sum().backward()
        assert size.grad.item() == 1

    def test_it_starts_above_zero(self):
        with pytest.raises(ValueError, match='is positive, but got initial=0'):
            ElasticActivation(3, initial=0)


def test_each_plane_of_gsb_has_its_own_worth():
    from bnn_plugins.binarize.probabilities import GSBProbability
    binarizer = GSBProbability(initial=0.5)
    binarizer.extra.data.copy_(torch.tensor([2.0, 3.0]))
    assert [step.item() for step in binarizer.steps()] == [0.5, 1.0, 1.5]
    assert binarizer.SHARES == (0.7, 0.9), 'of the second and of the third'
