"""Rules on lists of tensors against torch, tensor by tensor."""

import pytest
import torch
from torch import nn

from bnn_kernels import updates
from bnn_kernels.updates import Tensors

SHAPES = [(), (1,), (7,), (3, 5), (4, 33), (2, 3, 3, 3), (64, 300, 3, 3), (0, 4), (5, 16)]
pytestmark = [pytest.mark.sanitize, pytest.mark.skipif(not updates.available(), reason='the engine is not compiled')]


def tensors(scale=1.0, shapes=SHAPES):
    return [scale * torch.randn(shape) for shape in shapes]


def lists(*groups):
    found = [Tensors() for _ in groups]
    assert all(places.update(group) for places, group in zip(found, groups, strict=True))
    return found


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_clip():
    found = tensors(2.0)
    found[3][0, 0], found[3][0, 1] = float('nan'), float('inf')
    expected = [x.clamp(-1.5, 1.5) for x in found]
    updates.clip_(*lists(found), 1.5)
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.nan_to_num(9), y.nan_to_num(9))


def test_flips_are_counted_by_filter():
    """The first call has no signs before it; zero has the sign +1. Mutations: the sign of zero; signs are not kept."""
    shapes = [shape for shape in SHAPES if len(shape) > 1]
    weights = tensors(shapes=shapes)
    last = [torch.zeros(shape, dtype=torch.int8).flatten(1) for shape in shapes]
    shares = [torch.full((shape[0],), 9.0) for shape in shapes]
    kept = Tensors(torch.int8)
    assert kept.update(last)
    for step in range(3):
        before = [signs.clone() for signs in last]
        weights[0][0, 0] = -0.0 if step == 1 else -1.0
        updates.count_flips_(lists(weights)[0], kept, lists(shares)[0])
        for weight, signs, old, share in zip(weights, last, before, shares, strict=True):
            expected = torch.where(weight >= 0, 1, -1).to(torch.int8).view_as(signs)
            assert torch.equal(signs, expected)
            assert torch.equal(share, (expected == -old).float().mean(1))
        weights[1].copy_(torch.randn_like(weights[1]))
        weights[3].neg_()
    assert shares[3].eq(1).all()


@pytest.mark.parametrize('gamma', [0.1, 0.7, 1.0])
def test_bop(gamma):
    """To rounding: torch multiplies and adds at once where the processor can."""
    weights, momenta = [x.sign() for x in tensors()], tensors(0.1)
    for _ in range(3):
        gradients = tensors(0.1)
        means = [momentum.lerp(g, gamma) for momentum, g in zip(momenta, gradients, strict=True)]
        flipped = [torch.where(w * m > 0.02, -w, w) for w, m in zip(weights, means, strict=True)]
        sure = [(w * m - 0.02).abs() > 1e-6 for w, m in zip(weights, means, strict=True)]
        updates.flip_(*lists(weights, gradients, momenta), gamma, 0.02)
        for w, m, mean, f, s in zip(weights, momenta, means, flipped, sure, strict=True):
            torch.testing.assert_close(m, mean, rtol=1e-5, atol=1e-7)
            assert torch.equal(w[s], f[s])
            w.copy_(f)
            m.copy_(mean)


def test_units_are_clipped():
    weights, gradients = tensors(), tensors(0.05)
    weights[3][0] = 0
    gradients[4][1] = 0
    expected = []
    for w, g in zip(weights, gradients, strict=True):
        rows, columns = (x.flatten(1) if x.ndim > 1 else x.view(1, -1) for x in (w, g))
        limit = 0.02 * rows.norm(dim=1, keepdim=True).clamp(min=1e-3)
        norm = columns.norm(dim=1, keepdim=True)
        expected.append(torch.where(norm > limit, columns * limit / norm.clamp(min=1e-30), columns).view_as(g))
    updates.clip_units_(*lists(weights, gradients), 0.02, 1e-3)
    for g, y in zip(gradients, expected, strict=True):
        torch.testing.assert_close(g, y, rtol=1e-5, atol=1e-9)


def test_what_the_engine_does_not_take():
    """And what changes between two steps. Mutations: addresses alone are looked at; a gradient is looked at once."""
    dense = torch.randn(4, 6)
    places = Tensors()
    assert places.update([dense])
    assert places.update([nn.Parameter(dense)])
    for other in (dense.double(), dense.half(), dense.t(), dense.to('meta'), dense[:, :3]):
        assert not Tensors().update([dense, other])
    assert places.update([dense, dense.clone()])
    assert list(places.units) == [4, 4]
    assert places.update([dense])
    assert places.update([dense[:2]]), 'the same address, and fewer numbers'
    assert list(places.units) == [2]
    turned = torch.as_strided(dense, (4, 6), (1, 4))
    gradients = Tensors()
    assert gradients.update([dense])
    assert not gradients.update([turned], moving=True)
