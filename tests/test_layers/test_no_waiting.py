"""Latent layers neither wait for a GPU nor copy to it: they train and evaluate on the meta device, where nobody can."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnn_plugins
from bnn_plugins.layers import BinaryAttention, BinaryConv2d, BinaryLinear, BinaryLSTM


class Copies(TorchDispatchMode):
    """Notes what comes from the host. What would go there (`.item()`, `nonzero`) raises on the meta device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        tensors = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, torch.Tensor)]
        if isinstance(result, torch.Tensor) and result.is_meta and not all(value.is_meta for value in tensors):
            self.found.append(str(function))
        return result


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The meta device has none."""
    monkeypatch.setattr(torch, 'autocast', lambda *arguments, **keywords: nullcontext())
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda device_type=None: False)


def run(layer: nn.Module, *inputs: torch.Tensor) -> list[str]:
    layer.to('meta')
    for module in layer.modules():
        module._sign_checked = True  # of the very first step only
    with Copies() as copies:
        result = layer.train()(*inputs)
        (result[0] if isinstance(result, tuple) else result).sum().backward()
        with torch.no_grad():
            layer.eval()(*inputs)
    return copies.found


@pytest.mark.parametrize('method', bnn_plugins.list_methods())
def test_convolutions_and_linear_layers(method):
    x, rows = (torch.zeros(*shape, device='meta', requires_grad=True) for shape in ((2, 32, 8, 8), (4, 64)))
    assert run(BinaryConv2d(32, 32, 3, padding=1, method=method), x) == []
    assert run(BinaryLinear(64, 32, method=method), rows) == []


def test_recurrent_layers():
    assert run(BinaryLSTM(32, 32), torch.zeros(5, 2, 32, device='meta', requires_grad=True)) == []


def test_attention():
    """But for one small copy: the exponentials of a fixed scale are made on the host, as those of packed layers are."""
    x = torch.zeros(2, 9, 32, device='meta', requires_grad=True)
    assert run(BinaryAttention(32, 4), x, x, x) == ['aten._to_copy.default'] * 2  # in training, in evaluation
