"""Gains against numpy."""

import numpy as np
import pytest
import torch

from bnn_plugins.binarize.gains import SpatialGain


@pytest.mark.parametrize(('kernel_size', 'stride'), [(3, 1), (1, 1), (5, 2), (3, 2)])
def test_spatial_gain(kernel_size, stride):
    gain = SpatialGain(kernel_size).double()
    assert float(gain.filter.detach().sum()) == pytest.approx(1)  # a box filter: the mean of what it sees
    gain.filter.data.copy_(torch.randn(gain.filter.shape))
    x = torch.randn(2, 3, 6, 4, dtype=torch.float64)
    mean = np.pad(np.abs(x.numpy()).mean(1), [(0, 0), *[(kernel_size // 2,) * 2] * 2])
    windows = np.lib.stride_tricks.sliding_window_view(mean, (kernel_size, kernel_size), (1, 2))
    expected = np.einsum('nhwij,ij->nhw', windows, gain.filter.detach().numpy()[0, 0])
    expected = expected.reshape(2, 6 // stride, stride, 4 // stride, stride).mean((2, 4))[:, None]
    result = gain(x, torch.zeros(2, 7, 6 // stride, 4 // stride))
    np.testing.assert_allclose(result.detach().numpy(), expected)
    result.sum().backward()
    assert gain.filter.grad.abs().sum() > 0
