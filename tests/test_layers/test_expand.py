"""Expanding-and-shrinking: shapes, tile order, gradients, errors, against numpy written from the paper's figure."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnn_plugins import list_methods, pack_
from bnn_plugins.layers import (
    BinaryConv2d,
    BinaryLinear,
    ExpandedConv2d,
    Expansion,
    FirstCopy,
    SqueezeExcite,
    Tile,
    expanded_width,
    spread_copies_,
    tile,
)
from bnn_plugins.layers.expand import mean_over

from . import oracle

EXPANSIONS = [dict(tau=2), dict(tau=4, style='rep'), dict(tau=2, groups=2), dict(tau=1, groups=3), dict(tau=3, groups=2),
              dict(tau=2, style='drop_in'), dict(tau=2, groups=3, style='drop_in')]


def widths(expand, base_in=12, base_out=24):
    return expanded_width(base_in, expand), expanded_width(base_out, expand)


@pytest.mark.parametrize('expand', EXPANSIONS, ids=str)
def test_convolution_by_the_figure(expand):
    """c_o / tau filters of depth c_i * tau in g groups, replicated tau**2 * g times; bias of its own for every copy."""
    tau, g, drop_in = expand['tau'], expand.get('groups', 1), expand.get('style') == 'drop_in'
    inputs, outputs = widths(expand)
    layer = BinaryConv2d(inputs, outputs, 3, padding=1, method='bireal', expand=expand).eval()
    assert layer.weight.shape == (24 // tau, 12 * tau, 3, 3)
    assert layer.weight.numel() == 24 * 12 * 9, 'the weights of the base layer'
    assert layer.bias.shape == (outputs,)
    if drop_in:
        nn.init.normal_(layer.copy_shift)
    x = torch.randn(2, inputs, 6, 5)
    seen = x.numpy()
    if drop_in:
        seen = np.concatenate([seen] * tau * g, 1) + layer.copy_shift.detach().numpy()[:, None, None]
    latents = layer.weight.detach().numpy()
    y = oracle.conv2d(np.where(seen >= 0, 1, -1), np.where(latents >= 0, 1, -1), padding=(1, 1), groups=g)
    y = y * np.abs(latents).mean((1, 2, 3))[:, None, None]
    copies = tau if drop_in else tau**2 * g
    expected = np.stack([y[:, j % (24 // tau)] for j in range(copies * 24 // tau)], 1)  # tile, not repeat_interleave
    expected = expected + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    assert layer(x).shape == (2, outputs, 6, 5)


def test_linear():
    layer = BinaryLinear(24, 16, method='binarynet', expand=dict(tau=2)).eval()
    assert layer.weight.shape == (4, 24)
    assert layer.bias.shape == (16,)
    x = torch.randn(2, 3, 24)
    y = oracle.linear(np.where(x.numpy() >= 0, 1, -1), np.where(layer.weight.detach().numpy() >= 0, 1, -1))
    np.testing.assert_allclose(layer(x).detach().numpy(), np.concatenate([y] * 4, -1) + layer.bias.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize('method', list_methods())
@pytest.mark.parametrize('expand', [None, {}, dict(tau=1), dict(tau=1, groups=1, style='drop_in', spread=1.0)], ids=str)
def test_tau_1_is_the_base_layer(method, expand):
    results = []
    for options in ({}, dict(expand=expand)):
        torch.manual_seed(3)
        conv = BinaryConv2d(6, 8, 3, padding=1, method=method, **options)
        linear = BinaryLinear(6, 8, method=method, **options)
        x = torch.randn(2, 6, 5, 4, requires_grad=True)
        out = conv(x), linear(x.movedim(1, -1))
        sum((y * torch.randn_like(y)).sum() for y in out).backward()
        parameters = [*conv.named_parameters(), *linear.named_parameters()]
        results.append((*out, x.grad, *(p for _, p in parameters), *(p.grad for _, p in parameters)))
    assert len(results[0]) == len(results[1])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('expand', EXPANSIONS, ids=str)
def test_gradient_is_the_sum_over_the_copies(expand):
    inputs, outputs = widths(expand)
    layer = BinaryConv2d(inputs, outputs, 3, method='binarynet', expand=expand)
    x = torch.randn(2, inputs, 6, 5)
    gradient = torch.randn(layer(x).shape)
    layer(x).backward(gradient)
    filters = len(layer.weight)
    summed = gradient.unflatten(1, (outputs // filters, filters)).sum(1)
    seen = x if layer.copy_shift is None else tile(x, Expansion(**expand).copies)
    dw = torch.nn.grad.conv2d_weight(torch.where(seen >= 0, 1.0, -1.0), layer.weight.shape, summed,
                                     groups=expand.get('groups', 1))
    torch.testing.assert_close(layer.weight.grad, dw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, gradient.sum((0, 2, 3)))


@given(channels=st.integers(1, 5), times=st.integers(1, 6), last=st.booleans())
def test_tile(channels, times, last):
    x = torch.randn(2, 3, channels) if last else torch.randn(2, channels, 3)
    x.requires_grad_()
    dim = -1 if last else 1
    out = tile(x, times, dim)
    for j in range(times * channels):
        assert torch.equal(out.select(dim, j), x.select(dim, j % channels))
    gradient = torch.randn_like(out)
    out.backward(gradient)
    torch.testing.assert_close(x.grad, sum(gradient.chunk(times, dim)))
    assert torch.equal(Tile(times, dim)(x), out)
    if not last:
        assert torch.equal(FirstCopy(times)(out), x)


def test_channels_last_is_kept():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert tile(x, 3).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('expand', EXPANSIONS[:5], ids=str)
def test_real_convolution(expand):
    inputs, outputs = widths(expand)
    layer = ExpandedConv2d(inputs, outputs, 1, stride=2, expand=expand)
    base = nn.Conv2d(12, 24, 1)
    assert layer.weight.numel() == base.weight.numel()
    x = torch.randn(2, inputs, 6, 5)
    y = oracle.conv2d(x, layer.weight.detach(), stride=(2, 2), groups=expand.get('groups', 1))
    copies = outputs // len(layer.weight)
    expected = np.concatenate([y] * copies, 1) + layer.bias.detach().numpy()[:, None, None]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_real_convolution_without_expand_is_torchs():
    torch.manual_seed(0)
    layer = ExpandedConv2d(4, 6, 3, groups=2, expand=dict(tau=1))
    torch.manual_seed(0)
    real = nn.Conv2d(4, 6, 3, groups=2)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(layer(x), real(x))


@pytest.mark.parametrize('expand', [None, dict(tau=2), dict(tau=2, groups=2)], ids=str)
@pytest.mark.parametrize('gate', ['sigmoid', 'hardsigmoid'])
def test_squeeze_excite(expand, gate):
    """Weights and FLOPs of the base network's; one factor in [0, 1] for each channel."""
    width = expanded_width(64, expand)
    layer, base = SqueezeExcite(width, 8, expand, gate), SqueezeExcite(64, 8)
    assert [layer.squeeze.weight.numel(), layer.excite.weight.numel()] == [512, 512]
    assert [base.squeeze.weight.numel(), base.excite.weight.numel()] == [512, 512]
    x = torch.randn(2, width, 5, 4)
    out = layer(x)
    assert out.shape == (2, width, 1, 1)
    hidden = layer.squeeze(x.mean((2, 3), keepdim=True))
    assert hidden.shape[1] == width // 8
    raw = layer.excite(torch.relu(hidden))
    expected = torch.sigmoid(raw) if gate == 'sigmoid' else (raw / 6 + 0.5).clamp(0, 1)
    torch.testing.assert_close(out, expected)


def test_spread():
    layer = BinaryConv2d(32, 32, 3, method='reactnet', expand=dict(tau=2, groups=2, spread=0.3))
    expected = torch.tensor([-0.3, -0.1, 0.1, 0.3]).repeat_interleave(8)
    torch.testing.assert_close(layer.activation.shift.detach(), expected)
    layer = BinaryConv2d(32, 32, 3, method='recu', expand=dict(tau=2, style='drop_in', spread=0.3))
    torch.testing.assert_close(layer.copy_shift.detach(), torch.tensor([-0.3, 0.3]).repeat_interleave(32))
    bias = torch.zeros(6)
    assert torch.equal(spread_copies_(bias, 3, 1.0), torch.tensor([-1.0, -1, 0, 0, 1, 1]))
    assert torch.equal(spread_copies_(torch.ones(4), 1, 1.0), torch.ones(4))


def test_copies_start_as_equals():
    assert not BinaryConv2d(32, 32, 3, method='reactnet', expand=dict(tau=2)).activation.shift.any()


@pytest.mark.parametrize(('expand', 'message'), [
    (dict(tau=0), 'tau must be an integer of at least 1, but got 0'),
    (dict(tau=2.0), 'tau must be an integer of at least 1, but got 2.0'),
    (dict(tau=True), 'tau must be an integer'),
    (dict(groups=-1), 'groups must be an integer of at least 1, but got -1'),
    (dict(tua=2), "unknown key of expand 'tua'; did you mean 'tau'"),
    (dict(tau=2, style='drop-in'), "unknown style of expand 'drop-in'; did you mean 'drop_in'"),
    (2, r'expand must be None or dict\(tau=2, ...\), but got 2'),
    (dict(tau=3), r'expand\(tau=3, groups=1, style=.es.\) does not divide 16 -> 16 .* tau \* groups = 3'),
    (dict(tau=2, groups=4), r'divisible by tau \* groups = 8, and the layer takes and gives the 8 times wider one'),
    (dict(tau=5, style='drop_in'), 'the output width must be divisible by tau . groups = 5$'),
])
@pytest.mark.parametrize('cls', [BinaryConv2d, ExpandedConv2d])
def test_errors(expand, message, cls):
    with pytest.raises(ValueError, match=message):
        cls(16, 16, 1, expand=expand)


def test_groups_of_the_convolution_are_refused():
    for cls in (BinaryConv2d, ExpandedConv2d):
        with pytest.raises(ValueError, match='groups=4 cannot be expanded'):
            cls(16, 16, 3, groups=4, expand=dict(tau=2))
    with pytest.raises(ValueError, match='a linear layer has no groups: expand takes groups=1 here, but got 2'):
        BinaryLinear(16, 16, expand=dict(tau=1, groups=2))


def test_errors_of_squeeze_excite():
    with pytest.raises(ValueError, match="unknown gate 'sigmoidal'; did you mean 'sigmoid'"):
        SqueezeExcite(16, gate='sigmoidal')
    with pytest.raises(ValueError, match='20 channels are not divisible by reduction=8'):
        SqueezeExcite(20)


@pytest.mark.parametrize('expand', EXPANSIONS, ids=str)
@pytest.mark.parametrize('folded', [False, True])
def test_packed(expand, folded):
    inputs, outputs = widths(expand)
    for method in ('reactnet', 'recu', 'binarynet', 'binaryconnect', dict(type='dorefa', w_bits=2, a_bits=2)):
        layer = BinaryConv2d(inputs, outputs, 3, padding=1, method=method, expand=expand).eval()
        if folded:
            layer.fold_(torch.randn(outputs))
        packed = pack_(copy.deepcopy(layer))
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, inputs, 6, 5).to(memory_format=memory_format)
            assert torch.equal(packed(x), layer(x))
            assert packed(x).stride() == layer(x).stride()
        assert packed.weight_bits.shape[1] == len(layer.weight), 'bits of the few filters'


@pytest.mark.parametrize('expand', EXPANSIONS, ids=str)
@pytest.mark.parametrize('method', ['reactnet', 'binarynet', 'recu', dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
@pytest.mark.parametrize('linear', [False, True], ids=['conv', 'linear'])
@torch.no_grad()
def test_folded_factors_are_those_of_the_outputs(expand, method, linear):
    """``z_j = f_j * scale_(j mod filters) * y_(j mod filters) + b_j``, in float64; latent, packed, and both with no factor."""
    if linear and expand.get('groups', 1) > 1:
        return
    inputs, outputs = widths(expand)
    layer = (BinaryLinear if linear else lambda *args, **kwargs: BinaryConv2d(*args, 1, **kwargs))(
        inputs, outputs, method=method, expand=expand).eval()
    for name, parameter in layer.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.3 * torch.randn_like(parameter) if 'alpha' not in name else 0.3 * torch.rand_like(parameter))
    x, copies, groups = torch.randn(40, inputs), Expansion(**expand).copies, expand.get('groups', 1)
    seen = x.repeat(1, copies) + layer.copy_shift if layer.copy_shift is not None else x
    levels = layer.activation(seen if linear else seen[..., None, None]).flatten(1).double()
    weight_levels, scale = layer.weight_binarizer(layer.weight)
    weights = weight_levels.double().flatten(1).chunk(groups)
    sums = torch.cat([part @ rows.T for part, rows in zip(levels.chunk(groups, 1), weights, strict=True)], 1)
    sums = sums * layer.activation.step * (1.0 if scale is None else scale.double())
    unfolded = np.stack([sums[:, j % sums.shape[1]] for j in range(outputs)], 1)
    factor, bias = torch.randn(outputs), layer.bias.double().numpy()
    for expected in (unfolded + bias, unfolded * factor.double().numpy() + bias):
        for module in (layer, pack_(copy.deepcopy(layer))):
            found = module(x if linear else x[..., None, None]).flatten(1)
            np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-5, atol=1e-5)
        layer.fold_(factor)


def test_signature_holds_what_the_bits_mean():
    signatures = [pack_(BinaryConv2d(72, 72, 1, method='bireal', expand=expand)).signature() for expand in
                  (None, dict(tau=2), dict(tau=3), dict(tau=2, groups=3), dict(tau=2, style='drop_in'))]
    assert len(set(signatures)) == 5
    rep = pack_(BinaryConv2d(72, 72, 1, method='bireal', expand=dict(tau=2, style='rep', spread=1.0))).signature()
    assert rep == signatures[1], 'style and spread are for the network around and for the start'


@pytest.mark.parametrize('size', [1, 2, 3, 8])
def test_mean_over(size):
    x = torch.randn(2, 5 * size, 4, 6, dtype=torch.float64, requires_grad=True)
    wide = x.to(memory_format=torch.channels_last)
    mean = mean_over(wide.unflatten(1, (size, 5)), 1, size)
    torch.testing.assert_close(mean, x.unflatten(1, (size, 5)).mean(1))
    assert mean.is_contiguous(memory_format=torch.channels_last), 'what a fused step adds goes in without a copy'
    mean.sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / size))
