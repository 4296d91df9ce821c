"""BinaryConvModule: the shortcut without parameters, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d, RPReLU
from bnn_plugins.models import BinaryConvModule


def module(*args, **kwargs):
    return BinaryConvModule(*args, **{'norm_cfg': dict(type='BN'), **kwargs})


def test_same_shape_is_the_identity():
    x = torch.randn(2, 4, 5, 7)
    assert torch.equal(module(4, 4, 3, 1, 1).shortcut(x), x)


def test_narrower_averages_groups():
    """Channel o is the mean of the channels o, o + O, o + 2 O, ..."""
    x = torch.randn(2, 6, 3, 3)
    expected = x.numpy().reshape(2, 3, 2, 3, 3).mean(1)
    np.testing.assert_allclose(module(6, 2, 1).shortcut(x).numpy(), expected, rtol=1e-6)
    torch.testing.assert_close(module(6, 2, 1).shortcut(x)[:, 1], (x[:, 1] + x[:, 3] + x[:, 5]) / 3)


def test_wider_tiles():
    x = torch.randn(2, 2, 3, 3)
    assert torch.equal(module(2, 6, 1).shortcut(x), torch.cat([x, x, x], 1))


def test_other_widths_have_none():
    block = module(4, 6, 1).eval()
    assert block.shortcut(torch.randn(1, 4, 3, 3)) is None
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(block(x), block.act(block.bn(block.conv(x))))


@pytest.mark.parametrize('size', [(8, 6), (7, 5), (1, 1)])
def test_stride_averages_and_rounds_up(size):
    block = module(3, 3, 3, 2, 1)
    x = torch.randn(2, 3, *size)
    out = block.shortcut(x)
    assert out.shape == block.conv(x).shape
    torch.testing.assert_close(out[:, :, 0, 0], x[:, :, :2, :2].mean((2, 3)))
    torch.testing.assert_close(out[:, :, -1, -1], x[:, :, (size[0] - 1) // 2 * 2:, (size[1] - 1) // 2 * 2:].mean((2, 3)))


def test_order_is_act_of_norm_plus_shortcut():
    block = module(4, 4, 3, 1, 1, method='reactnet')
    assert isinstance(block.act, RPReLU)
    x = torch.randn(2, 4, 5, 5)
    block.bn.eval()
    torch.testing.assert_close(block(x), block.act(block.bn(block.conv(x)) + x))  # one operator in training
    block.eval()
    assert torch.equal(block(x), block.act(block.bn(block.conv(x)) + x))


def test_norm_decides_on_the_bias():
    assert module(4, 4, 1).conv.bias is None
    plain = module(4, 4, 1, norm_cfg=None, act='identity')
    assert plain.conv.bias is not None
    x = torch.randn(1, 4, 3, 3)
    assert torch.equal(plain(x), plain.conv(x) + x)


def test_group_norm_and_pad_value():
    block = module(4, 8, 3, 1, 1, norm_cfg=dict(type='GN', num_groups=2), pad_value=-1)
    assert isinstance(block.gn, nn.GroupNorm)
    assert block.conv.pad_value == -1
    assert block(torch.randn(2, 4, 6, 6)).shape == (2, 8, 6, 6)


@pytest.mark.parametrize('method', list_methods())
def test_every_method_trains(method):
    block = module(4, 8, 3, 2, 1, method=method)
    assert type(block.conv) is BinaryConv2d
    block(torch.randn(2, 4, 9, 9)).square().mean().backward()
    for name, p in block.named_parameters():
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name


def test_unknown_act():
    with pytest.raises(ValueError, match="did you mean 'rprelu'"):
        module(4, 4, 1, act='rpreluu')
