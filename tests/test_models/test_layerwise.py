"""LWS-Det's losses against numpy."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins.layers import BinaryConv2d
from bnn_plugins.models.losses import LayerwiseLoss, Outputs


def angles_and_products(a, w, stride):
    """A padded 3x3 convolution patch by patch: cosines and products, [N, O, H', W']."""
    padded = np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns = (range(0, size, stride) for size in a.shape[2:])
    cosines, products = (np.zeros((len(a), len(w), len(rows), len(columns))) for _ in range(2))
    for n, o, (i, y), (j, x) in product(range(len(a)), range(len(w)), enumerate(rows), enumerate(columns)):
        patch = padded[n, :, y:y + 3, x:x + 3]
        products[n, o, i, j] = (patch * w[o]).sum()
        cosines[n, o, i, j] = products[n, o, i, j] / np.linalg.norm(patch) / np.linalg.norm(w[o])
    return cosines, products


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


@pytest.mark.parametrize(('stride', 'method'), [(1, 'reactnet'), (2, 'reactnet'), (1, 'lwsdet')])
def test_formula(stride, method):
    student = BinaryConv2d(3, 4, 3, stride, 1, bias=False, method=method).double()
    teacher = nn.Conv2d(3, 4, 3, stride, 1, bias=False).double()
    learned = student.activation.shift if method == 'reactnet' else student.weight_binarizer.alpha
    nn.init.normal_(learned)
    x, y = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    w, values = student.weight.detach().numpy(), learned.detach().numpy()
    shift, alpha = (values, np.abs(w).mean((1, 2, 3))) if method == 'reactnet' else (np.zeros(3), np.abs(values))
    cosines, products = angles_and_products(sign(x.detach().numpy() + shift[:, None, None]), sign(w), stride)
    products = products * alpha[:, None, None]
    real_cosines, real_products = angles_and_products(y.numpy(), teacher.weight.detach().numpy(), stride)
    loss = LayerwiseLoss(angle=3.0, amplitude=2.0, reconstruction=4.0, weight=0.5)
    out = loss(Outputs(None, (), ((student, x),)), Outputs(None, (), ((teacher, y),)))
    expected = 0.5 * (3 * ((cosines - real_cosines)**2).mean() + 2 * ((products - real_products)**2).mean()
                      + 4 * ((alpha[:, None, None, None] * sign(w) - teacher.weight.detach().numpy())**2).mean())
    np.testing.assert_allclose(out.item(), expected, rtol=1e-10)
    out.backward()
    assert all(t.grad.any() for t in (x, student.weight, learned))


def test_a_mean_over_layers():
    pairs = [(BinaryConv2d(4, 4, 1), nn.Conv2d(4, 4, 1), torch.randn(1, 4, 3, 3)) for _ in range(2)]

    def loss(chosen):
        return LayerwiseLoss()(*(Outputs(None, (), tuple((pair[i], pair[2]) for pair in chosen)) for i in (0, 1))).item()
    assert loss(pairs) == pytest.approx((loss(pairs[:1]) + loss(pairs[1:])) / 2)
    for wrong in ([], [pairs[0], (BinaryConv2d(4, 4, 3), pairs[1][1], pairs[1][2])]):
        with pytest.raises(ValueError, match='compares convolutions in pairs'):
            loss(wrong)
    with pytest.raises(ValueError, match='one group and one basis, padded with zeros'):
        loss([(BinaryConv2d(4, 4, 1, pad_value=1), *pairs[0][1:])])
