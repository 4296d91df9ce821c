"""BFloat16OptimWrapper: the forward in bfloat16, parameters and gradients in float32."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from bnn_plugins.binarize import list_methods
from bnn_plugins.layers import BinaryConv2d


@pytest.mark.parametrize('method', list_methods())
def test_step(method):
    model = nn.Sequential(BinaryConv2d(3, 4, 3, method=method), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type='bnn_plugins.BFloat16OptimWrapper', optimizer=optimizer, accumulative_counts=2))
    before = {name: p.clone() for name, p in model.named_parameters()}
    for step in range(2):
        wrapper.initialize_count_status(model, step, 2)
        with wrapper.optim_context(model):
            out = model(torch.randn(2, 3, 8, 8))
        assert out.dtype == torch.bfloat16
        wrapper.update_params((out.float() - 1).square().mean())
        moved = [not torch.equal(p, before[name]) for name, p in model.named_parameters()]
        assert any(moved) == (step == 1), 'gradients are accumulated over two iterations'
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model[0].weight.isfinite().all()
    assert not torch.equal(model[0].weight, before['0.weight'])
    assert model(torch.randn(1, 3, 8, 8)).dtype == torch.float32, 'only inside of the context'
