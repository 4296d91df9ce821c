"""BinaryLinear: shapes, thresholds per feature, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryLinear


@given(leading=st.lists(st.integers(0, 3), max_size=3), features=st.integers(1, 9), outputs=st.integers(1, 5),
       seed=st.integers(0, 99))
def test_accumulators_are_exact(leading, features, outputs, seed):
    torch.manual_seed(seed)
    layer = BinaryLinear(features, outputs, bias=False, method='binarynet').eval()
    x = torch.randn(*leading, features)
    expected = np.where(x.numpy() < 0, -1.0, 1.0) @ np.where(layer.weight.detach().numpy() < 0, -1.0, 1.0).T
    np.testing.assert_array_equal(layer(x).detach().numpy(), expected)


@pytest.mark.parametrize('method', list_methods())
@pytest.mark.parametrize('shape', [(6,), (3, 6), (2, 3, 6), (2, 6, 6, 6), (0, 6)])
def test_every_leading_shape(method, shape):
    layer = BinaryLinear(6, 4, method=method)
    out = layer(torch.randn(shape))
    assert out.shape == (*shape[:-1], 4)
    assert out.isfinite().all()


def test_rows_are_independent():
    """In evaluation a token's output depends on that token alone, whatever the method."""
    x = torch.randn(3, 5, 6)
    for method in list_methods():
        layer = BinaryLinear(6, 4, method=method).eval()
        torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2]))


def test_thresholds_are_per_feature():
    layer = BinaryLinear(3, 1, bias=False, method='reactnet').eval()
    layer.weight.data.fill_(1.0)
    layer.activation.shift.data = torch.tensor([1.0, -1.0, -1.0])
    assert layer(torch.zeros(1, 3, 3)).flatten().tolist() == [-1] * 3


def test_relu_before_a_sign_is_refused():
    with pytest.raises(ValueError, match='always \\+1'):
        nn.Sequential(nn.ReLU(), BinaryLinear(16, 4))(torch.randn(32, 16))


def test_unknown_method():
    with pytest.raises(ValueError, match="did you mean 'reactnet'"):
        BinaryLinear(4, 4, method='reacnet')
