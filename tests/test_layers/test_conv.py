"""BinaryConv2d: paddings, strides, dilations, groups against float64; what it refuses and what it says then."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d

from . import oracle


def levels_of(layer, x):
    with torch.no_grad():
        return layer.activation(x), layer.weight_binarizer(layer.weight)[0]


def plain(*args, **kwargs):
    """A layer whose output is the accumulator: no scale, no bias."""
    return BinaryConv2d(*args, method='binarynet', bias=False, **kwargs).eval().requires_grad_(False)


@st.composite
def convolutions(draw):
    groups = draw(st.integers(1, 3))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 2))
    dilation = draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 3)] * 2), st.sampled_from(['same', 'valid'])))
    stride = (1, 1) if padding == 'same' else draw(st.tuples(*[st.integers(1, 3)] * 2))
    extent = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    size = tuple(e + draw(st.integers(0, 4)) for e in extent)
    return dict(in_channels=groups * draw(st.integers(1, 3)), out_channels=groups * draw(st.integers(1, 2)), size=size,
                kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, groups=groups,
                pad_value=draw(st.sampled_from([-1, 0, 1])))


@given(spec=convolutions(), seed=st.integers(0, 99))
def test_accumulators_are_exact(spec, seed):
    torch.manual_seed(seed)
    height, width = spec.pop('size')
    layer = plain(**spec)
    x = torch.randn(2, spec['in_channels'], height, width)
    x[x.abs() < 0.1] = 0  # exact zeros are +1
    out = layer(x)
    expected = oracle.accumulators(layer, *levels_of(layer, x))
    assert out.shape == expected.shape
    assert (out.double().numpy() == expected).all()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(('channels', 'size', 'stride', 'kernel'), [
    (64, 28, 1, 3), (256, 14, 1, 3), (128, 16, 2, 3), (256, 8, 1, 1)])
@pytest.mark.parametrize('training', [False, True])
def test_sizes_of_real_networks_are_exact(memory_format, channels, size, stride, kernel, training):
    """Libraries choose other algorithms for them (Winograd rounds): accumulators stay integers."""
    layer = plain(channels, channels, kernel, stride, kernel // 2).to(memory_format=memory_format).requires_grad_(training)
    x = torch.randn(2, channels, size, size).to(memory_format=memory_format)
    levels, weight_levels = levels_of(layer, x)
    expected = F.conv2d(levels.double(), weight_levels.double(), None, stride, kernel // 2)
    assert torch.equal(layer(x).double(), expected)
    assert torch.equal(expected, expected.round())


@pytest.mark.parametrize('pad_value', [-1, 0, 1])
@pytest.mark.parametrize('padding', [0, 1, (2, 0), 'same', 'valid'])
@pytest.mark.parametrize('method', ['binarynet', 'reactnet', 'recu', 'xnor', 'irnet', 'bireal'])
def test_pad_value_against_float64(pad_value, padding, method):
    layer = BinaryConv2d(4, 6, 3, padding=padding, dilation=2, method=method, pad_value=pad_value).double()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    levels, weight_levels = levels_of(layer, x)
    amount = {'same': (2, 2), 'valid': (0, 0)}.get(padding, padding if isinstance(padding, tuple) else (padding,) * 2)
    padded = F.pad(levels, (amount[1], amount[1], amount[0], amount[0]), value=float(pad_value))
    acc = F.conv2d(padded, weight_levels, None, 1, 0, 2)
    scale = layer.weight_binarizer(layer.weight)[1]
    expected = acc * (1 if scale is None else scale.view(1, -1, 1, 1)) + layer.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_pad_value_by_hand():
    """A 1x1 image of +1 and a kernel of ones: eight taps lie outside."""
    for pad_value, expected in ((-1, 1 - 8), (0, 1), (1, 1 + 8)):
        layer = plain(1, 1, 3, padding=1, pad_value=pad_value)
        layer.weight.data.fill_(0.5)
        assert layer(torch.ones(1, 1, 1, 1)).item() == expected


def test_padding_is_after_the_sign():
    """With a threshold above 0, padding before the sign would give -1 outside."""
    layer = BinaryConv2d(1, 1, 3, padding=1, bias=False, method='reactnet').eval()
    layer.activation.shift.data.fill_(-0.5)
    layer.weight.data.fill_(1.0)
    assert layer(torch.ones(1, 1, 1, 1)).item() == 1


def test_same_padding_of_even_kernels_puts_the_odd_one_last():
    layer = plain(2, 3, (2, 4), padding='same', dilation=(1, 3), pad_value=-1)
    x = torch.randn(1, 2, 5, 12)
    assert layer(x).shape == (1, 3, 5, 12)
    assert (layer(x).double().numpy() == oracle.accumulators(layer, *levels_of(layer, x))).all()


def test_zeros_count_as_plus_one():
    layer = plain(3, 2, 1)
    levels = torch.where(layer.weight < 0, -1.0, 1.0)
    for zero in (0.0, -0.0):
        assert torch.equal(layer(torch.full((1, 3, 1, 1), zero)), levels.sum(1).view(1, 2, 1, 1))


@pytest.mark.parametrize('pad_value', [-1, 1])
@pytest.mark.parametrize('padding', [1, 'same'])
def test_gradient_with_a_pad_value(pad_value, padding):
    """Padding takes part in the gradient of the latents and in nothing else."""
    layer = BinaryConv2d(2, 3, 3, padding=padding, method='binarynet', pad_value=pad_value).double()
    x = (0.5 * torch.randn(1, 2, 4, 4, dtype=torch.float64)).requires_grad_()
    g = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    layer(x).backward(g)
    levels, weight_levels = levels_of(layer, x)
    padded = F.pad(levels, (1, 1, 1, 1), value=float(pad_value)).requires_grad_()
    weight_levels.requires_grad_()
    F.conv2d(padded, weight_levels).backward(g)
    torch.testing.assert_close(layer.weight.grad, weight_levels.grad)
    inside = padded.grad[..., 1:-1, 1:-1] * (x.abs() <= 1)
    torch.testing.assert_close(x.grad, inside)


class TestRefusals:
    @pytest.mark.parametrize('mode', ['reflect', 'replicate', 'circular'])
    def test_padding_mode(self, mode):
        with pytest.raises(ValueError, match=f"constant pad_value; padding_mode='{mode}'"):
            BinaryConv2d(3, 4, 3, padding_mode=mode)

    @pytest.mark.parametrize('pad_value', [2, 0.5, None, 'zeros'])
    def test_pad_value(self, pad_value):
        with pytest.raises(ValueError, match='pad_value must be -1, 0 or 1, but got'):
            BinaryConv2d(3, 4, 3, pad_value=pad_value)

    @pytest.mark.parametrize('method', ['dorefa', 'binaryconnect', dict(type='dorefa', a_bits=2)])
    def test_pad_value_of_unsigned_or_real_activations(self, method):
        BinaryConv2d(3, 4, 3, method=method, pad_value=0)
        with pytest.raises(ValueError, match=r'needs -1/\+1 activations; the method .* use 0'):
            BinaryConv2d(3, 4, 3, method=method, pad_value=-1)

    def test_unknown_method(self):
        with pytest.raises(ValueError, match="did you mean 'bireal'"):
            BinaryConv2d(3, 4, 3, method='birael')

    @pytest.mark.parametrize('shape', [(4, 8, 8), (8, 8), (1, 4, 8, 8, 8)])
    def test_only_batches_of_images(self, shape):
        """Without the check, [C, H, W] with H == C would shift rows instead of channels."""
        with pytest.raises(ValueError, match=r'takes \[N, C, H, W\], but got'):
            BinaryConv2d(4, 8, 1)(torch.randn(shape))

    def test_foreign_weight(self):
        layer = BinaryConv2d(4, 6, 3)
        with pytest.raises(ValueError, match='its own latent weight; forward_with_norm takes a norm behind it'):
            layer._conv_forward(torch.randn(1, 4, 5, 5), torch.randn_like(layer.weight), None)


class TestConstantSign:
    """Behind a ReLU every sign is +1 and nothing can be learned: refused at the first training step."""

    @pytest.mark.parametrize('method', ['binarynet', 'xnor', 'bireal', 'irnet', 'recu', 'reactnet'])
    def test_relu_before_a_sign(self, method):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), BinaryConv2d(8, 4, 3, method=method))
        with pytest.raises(ValueError, match='always \\+1') as error:
            model(torch.randn(2, 3, 10, 10))
        for remedy in ("type='bnn_plugins.binarized'", 'bnn_plugins.BNNResNet', 'pre_norm=True', 'BinaryConv2d(8, 4'):
            assert remedy in str(error.value)

    @pytest.mark.parametrize('method', ['dorefa', 'binaryconnect', dict(type='dorefa', a_bits=2)])
    def test_methods_without_a_sign_may_follow_a_relu(self, method):
        model = nn.Sequential(nn.ReLU(), BinaryConv2d(8, 4, 3, method=method))
        assert model(0.6 + torch.rand(2, 8, 10, 10)).isfinite().all()

    def test_evaluation_is_not_checked(self):
        BinaryConv2d(8, 4, 3).eval()(torch.rand(2, 8, 10, 10))

    def test_only_the_first_step_is_checked(self):
        layer = BinaryConv2d(8, 4, 3)
        layer(torch.randn(2, 8, 10, 10))
        layer(torch.rand(2, 8, 10, 10))

    def test_zeros_pass(self):
        """Dummy inputs of summaries and shape inference."""
        BinaryConv2d(8, 4, 3)(torch.zeros(2, 8, 10, 10))

    def test_small_inputs_pass(self):
        """A few numbers may share a sign by chance."""
        BinaryConv2d(4, 4, 1)(torch.rand(1, 4, 2, 2))

    def test_one_negative_value_passes(self):
        x = torch.rand(2, 8, 10, 10)
        x[0, 0, 0, 0] = -1
        BinaryConv2d(8, 4, 3)(x)

    def test_thresholds_pass(self):
        """ReActNet's threshold may lie inside of a ReLU's range."""
        layer = BinaryConv2d(8, 4, 3, method='reactnet')
        layer.activation.shift.data.fill_(-0.5)
        layer(torch.rand(2, 8, 10, 10))

    @pytest.mark.parametrize('method', [m for m in list_methods() if m not in ('binaryconnect', 'dorefa')])
    def test_pre_norm_trains_behind_a_relu(self, method):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), BinaryConv2d(8, 4, 3, method=method, pre_norm=True))
        model(torch.randn(2, 3, 12, 12)).square().mean().backward()
        for name, p in model.named_parameters():
            assert p.grad.isfinite().all(), name
            assert p.grad.any(), name


def test_pre_norm_is_a_threshold_at_the_running_mean():
    layer = BinaryConv2d(3, 2, 1, bias=False, method='binarynet', pre_norm=True).eval()
    mean = torch.tensor([0.5, -1.0, 2.0])
    layer.pre_norm.running_mean.copy_(mean)
    layer.pre_norm.running_var.copy_(torch.tensor([4.0, 0.1, 1.0]))
    x = 2 * torch.randn(2, 3, 5, 5)
    levels = np.where(x.numpy() >= mean.view(1, 3, 1, 1).numpy(), 1.0, -1.0)
    expected = oracle.conv2d(levels, levels_of(layer, x)[1].numpy())
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)
    assert not list(layer.pre_norm.parameters()), 'no affine part: it would be lost in the sign'


def test_arguments_of_the_float_convolution():
    """Positional as in ``nn.Conv2d``; ``method`` and the others by keyword only."""
    layer = BinaryConv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 1), 2, False)
    real = nn.Conv2d(4, 6, (3, 5), (2, 1), (1, 2), (1, 1), 2, False)
    x = torch.randn(2, 4, 9, 9)
    assert layer(x).shape == real(x).shape
    assert layer.bias is None
    with pytest.raises(TypeError):
        BinaryConv2d(4, 6, 3, 1, 1, 1, 1, True, 'zeros', None, None, 'xnor')
    assert "method='reactnet', pad_value=0" in repr(layer)
