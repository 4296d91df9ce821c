"""Under autocast, too, what is evaluated is what the bits compute."""

import copy

import pytest
import torch
from torch import nn

import bnn_plugins
from bnn_plugins.layers import BinaryConv2d, BinaryLinear


@pytest.mark.parametrize('method', bnn_plugins.list_methods())
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_latent_equals_packed_under_autocast(method, dtype):
    # Sums of 600 signs are beyond the 8 bits of bfloat16's mantissa.
    model = nn.ModuleDict(dict(conv=BinaryConv2d(67, 5, 3, padding=1, method=method),
                               linear=BinaryLinear(601, 5, method=method))).eval()
    packed = bnn_plugins.pack_(copy.deepcopy(model))
    for name, x in (('conv', torch.randn(2, 67, 6, 5)), ('linear', torch.randn(3, 601))):
        with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
            one, other = model[name](x.to(dtype)), packed[name](x.to(dtype))
        assert torch.equal(one, other)
        if dtype == torch.float32:
            with torch.no_grad():
                assert torch.equal(one, model[name](x)), 'autocast changes nothing in evaluation'
