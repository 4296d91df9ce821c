"""Activation binarizers: levels and gradients against the formulas of the papers, on feature maps and on tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bnn_plugins.binarize import DoReFaActivation, InputSpec, RSign, build_method, list_methods, set_progress

from . import oracle

SPECS = [*list_methods(), *(dict(type='dorefa', a_bits=bits) for bits in (2, 3, 4, 8))]
SHAPES = [((2, 5, 4, 3), 1), ((3, 5), -1), ((2, 7, 5), -1)]  # shape, channel_dim; 5 channels each
EDGES = torch.tensor([0.0, -0.0, 1.0, -1.0, 1 + 1e-9, -1 - 1e-9, 30.0, -30.0, 0.5], dtype=torch.float64)


def activation(spec, channel_dim=1, dtype=torch.float64):
    return build_method(spec).activation(InputSpec(in_channels=5, channel_dim=channel_dim)).to(dtype)


def name_and_options(spec):
    options = dict(type=spec) if isinstance(spec, str) else dict(spec)
    return options.pop('type'), options


def test_every_method_has_a_formula():
    assert set(list_methods()) == set(oracle.ACTIVATIONS), 'write the formula of a new method in oracle.py'


@pytest.mark.parametrize(('shape', 'channel_dim'), SHAPES)
@pytest.mark.parametrize(('spec', 'progress'), [*((spec, 0.0) for spec in SPECS), ('irnet', 1.0),
                                                ('rbnn', 0.5), ('rbnn', 1.0)], ids=str)
def test_formula(spec, shape, channel_dim, progress):
    name, options = name_and_options(spec)
    if name in ('irnet', 'rbnn'):
        options['progress'] = progress
    if name == 'rbnn':
        options['rows'] = channel_dim == -1
    binarizer = activation(spec, channel_dim)
    set_progress(binarizer, progress)
    x = torch.randn(shape, dtype=torch.float64)
    x.view(-1)[:len(EDGES)] = EDGES
    x.requires_grad_()
    g = torch.randn(shape, dtype=torch.float64)

    levels = binarizer(x)
    (levels * binarizer.step).backward(g)
    expected, dx = oracle.ACTIVATIONS[name](x.detach().numpy(), g.numpy(), **options)

    np.testing.assert_array_equal(levels.detach().numpy(), expected)
    np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('spec', SPECS, ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('training', [True, False])
def test_levels_are_exact_in_every_dtype(spec, dtype, training):
    binarizer = activation(spec, dtype=dtype).train(training)
    x = (2 * torch.randn(2, 5, 4, 4)).to(dtype)
    levels = binarizer(x)
    assert levels.dtype == dtype
    assert levels.shape == x.shape
    if binarizer.bits == 32:
        assert torch.equal(levels, x)
    elif binarizer.signed:
        assert set(levels.unique().tolist()) == {-1.0, 1.0}
        assert binarizer.step == 1
    elif binarizer.twos_complement:
        half = 2 ** (binarizer.bits - 1)
        assert set(levels.unique().tolist()) <= set(map(float, range(-half, half)))
        assert levels.amin() < 0 < levels.amax()
    else:
        top = 2**binarizer.bits - 1
        assert set(levels.unique().tolist()) <= set(map(float, range(top + 1)))
        assert levels.max() == top
        assert binarizer.step == pytest.approx(1 / top)


@pytest.mark.parametrize('spec', SPECS, ids=str)
def test_training_and_evaluation_agree(spec):
    """What is packed is what was trained: the levels do not depend on the mode."""
    binarizer = activation(spec)
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    trained = binarizer(x)
    assert torch.equal(trained, binarizer.eval()(x))


@pytest.mark.parametrize('spec', SPECS, ids=str)
@pytest.mark.parametrize('shape', [(0, 5), (1, 5, 1, 1), (2, 5, 1, 1)])
def test_zeros_and_degenerate_shapes_are_finite(spec, shape):
    binarizer = activation(spec, -1 if len(shape) == 2 else 1, torch.float32)
    x = torch.zeros(shape, requires_grad=True)
    levels = binarizer(x)
    levels.sum().backward()
    assert levels.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('shape', [(5,), (3, 1), (0, 5), (1, 1)])
@pytest.mark.parametrize('spec', SPECS, ids=str)
def test_vectors_and_single_features(spec, shape):
    """``nn.Linear`` takes ``[C]`` and one feature; a sample of one number has no standard deviation to divide by."""
    binarizer = build_method(spec).activation(InputSpec(in_channels=shape[-1], channel_dim=-1))
    x = torch.rand(shape).sub(0.5).requires_grad_()
    levels = binarizer(x)
    levels.sum().backward()
    assert torch.equal(levels, binarizer.eval()(x))
    assert x.grad.isfinite().all()


class TestRSign:
    """sign(x + tau_c); the gradient of tau sums the masked gradient over everything but the channel."""

    @pytest.mark.parametrize(('shape', 'channel_dim'), SHAPES)
    def test_formula(self, shape, channel_dim):
        rsign = RSign(5, channel_dim=channel_dim).double()
        assert rsign.shift.tolist() == [0] * 5, 'thresholds start at zero'
        rsign.shift.data = torch.tensor([0.0, 0.7, -0.7, 1.5, -1.5], dtype=torch.float64)
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        g = torch.randn(shape, dtype=torch.float64)
        rsign(x).backward(g)
        axis = channel_dim % len(shape)
        along = [1] * len(shape)
        along[axis] = 5
        shifted = x.detach().numpy() + rsign.shift.detach().numpy().reshape(along)
        np.testing.assert_array_equal(rsign(x).detach().numpy(), oracle.sign(shifted))
        dx = g.numpy() * oracle.approx_sign(shifted)
        np.testing.assert_allclose(x.grad.numpy(), dx, rtol=1e-12)
        others = tuple(i for i in range(len(shape)) if i != axis)
        np.testing.assert_allclose(rsign.shift.grad.numpy(), dx.sum(others), rtol=1e-12)

    def test_threshold_is_where_the_level_turns(self):
        rsign = RSign(3)
        rsign.shift.data = torch.tensor([0.5, -0.25, 0.0])
        threshold = rsign.threshold()
        assert threshold.tolist() == [-0.5, 0.25, 0.0]
        at = threshold.view(1, 3, 1, 1)
        assert (rsign(at) == 1).all(), 'the threshold itself is +1'
        assert (rsign(at - 1e-3) == -1).all()

    def test_other_binarizers_have_no_threshold(self):
        assert activation('bireal').threshold() is None

    def test_square_tokens_use_the_last_dimension(self):
        """[N, C, C]: the mistake of using the wrong one does not show in the shape."""
        rsign = RSign(4, channel_dim=-1)
        rsign.shift.data = torch.tensor([1.0, -1.0, 1.0, -1.0])
        assert torch.equal(rsign(torch.zeros(1, 4, 4))[0, 0], torch.tensor([1.0, -1.0, 1.0, -1.0]))


@given(bits=st.integers(1, 8), x=st.floats(-3, 3, width=32))
def test_dorefa_level_is_the_nearest(bits, x):
    binarizer = DoReFaActivation(bits)
    level = binarizer(torch.tensor([x], dtype=torch.float64)).item()
    top = 2**bits - 1
    assert level == int(level)
    assert 0 <= level <= top
    assert abs(level / top - min(max(x, 0), 1)) <= 0.5 / top + 1e-12


def test_dorefa_two_bits_by_hand():
    x = torch.tensor([-0.2, 0.0, 0.1, 0.2, 0.4, 0.6, 0.9, 1.0, 1.2], requires_grad=True)
    levels = DoReFaActivation(2)(x)
    assert levels.tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    (levels * DoReFaActivation(2).step).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([0.0, 1, 1, 1, 1, 1, 1, 1, 0]))


@pytest.mark.parametrize('bits', [0, 9, 32])
def test_dorefa_refuses_other_widths(bits):
    with pytest.raises(ValueError, match='1 to 8 bits'):
        build_method(dict(type='dorefa', a_bits=bits)).activation(InputSpec(in_channels=5))


def test_recu_standardises_in_training_only():
    binarizer = activation('recu')
    x = 100 * torch.randn(2, 5, 6, 6, dtype=torch.float64)
    for training in (True, False):
        latent = x.clone().requires_grad_()
        binarizer.train(training)(latent).sum().backward()
        share = (latent.grad != 0).double().mean()
        assert (share > 0.6) == training, 'ApproxSign sees |x| < 1 only after the division'


def test_a_learned_step_is_positive_and_comes_back():
    """``max(x, 1e-5)`` with the gradient of the identity, also below."""
    from bnn_plugins.binarize.elastic import positive
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    y = positive(x)
    assert y.tolist() == pytest.approx([1e-5, 1e-5, 2.0])
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_gradient_of_an_elastic_sign_is_that_of_its_value():
    """Of ``step * level``: 1 where ``|x| <= step`` and 0 beyond; the step receives the levels."""
    from bnn_plugins.binarize.elastic import ElasticActivation
    act = ElasticActivation(1, initial=0.5)
    x = torch.tensor([[-0.75, -0.5, 0.25, 0.5, 0.75]]).unsqueeze(1).requires_grad_()
    (act(x) * act.step).sum().backward()
    assert x.grad.flatten().tolist() == [0, 1, 1, 1, 0]
    assert act.shift.grad.item() == 3
    assert act.size.grad.item() == 1
