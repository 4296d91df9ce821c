"""Packed layers prepare their weights once: at the second call nothing is derived from them, on any backend."""

import gc
import weakref

import pytest
import torch

import bnn_kernels
from bnn_kernels.derived import Derived
from bnn_plugins import pack_
from bnn_plugins.layers import AdaptiveConv2d, BinaryAttention, BinaryConv2d, BinaryConvLSTM, BinaryLinear, BinaryLSTM

from .nets import randomise_

K_BIT = dict(type='dorefa', w_bits=2, a_bits=2)
LAYERS = {
    'conv': (lambda: BinaryConv2d(40, 6, 3, padding=1, groups=2, method='xnor'), (2, 40, 5, 4)),
    'conv with a threshold': (lambda: BinaryConv2d(40, 6, 3, method='reactnet'), (2, 40, 5, 4)),
    'k-bit conv': (lambda: BinaryConv2d(40, 6, 3, padding=1, method=K_BIT), (2, 40, 5, 4)),
    'conv of two bases': (lambda: BinaryConv2d(40, 6, 3, padding=1, method='binarydm'), (2, 40, 5, 4)),
    'adaptive conv': (lambda: AdaptiveConv2d(40, 6, 3, padding=1), (2, 40, 5, 4)),
    'linear': (lambda: BinaryLinear(40, 6, method='xnor'), (3, 40)),
    'k-bit linear': (lambda: BinaryLinear(40, 6, method=K_BIT), (3, 40)),
    'LSTM': (lambda: BinaryLSTM(20, 12, method='reactnet', gates='binary'), (4, 2, 20)),
    'LSTM with soft gates': (lambda: BinaryLSTM(20, 12, method='xnor'), (4, 2, 20)),
    'k-bit LSTM': (lambda: BinaryLSTM(20, 12, method=K_BIT), (4, 2, 20)),
    'expanded LSTM': (lambda: BinaryLSTM(16, 16, method='reactnet', expand=dict(tau=2)), (4, 2, 16)),
    'conv LSTM': (lambda: BinaryConvLSTM(8, 6, 3, method='reactnet'), (3, 2, 8, 4, 4)),
    'attention': (lambda: BinaryAttention(16, 2), (2, 5, 16)),
}
BACKENDS = [name for name, state in bnn_kernels.available_backends().items() if state == 'available']


@pytest.fixture
def made(monkeypatch):
    """What is derived, newly each time."""
    log, new = [], Derived.new
    monkeypatch.setattr(Derived, 'new', lambda self, *arguments: log.append(self.make) or new(self, *arguments))
    return log


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('name', LAYERS)
def test_the_second_call_prepares_nothing(name, backend, made):
    build, shape = LAYERS[name]
    layer, x = pack_(randomise_(build()).eval()), torch.randn(shape)
    inputs = (x, x, x) if name == 'attention' else (x,)
    try:
        with bnn_kernels.set_backend(backend), torch.no_grad():
            layer(*inputs)
            first, made[:] = list(made), []
            layer(*inputs)
    except RuntimeError as error:
        if 'cannot run' not in str(error):
            raise
        pytest.skip(f'{backend} has no operator for it')
    assert made == []
    assert first or backend != 'cpu' or name == 'attention', 'nothing was counted'


@pytest.mark.parametrize('name', LAYERS)
def test_nothing_outlives_a_packed_layer(name):
    """What is derived is no view of the layer's tensors, which would keep them for ever."""
    build, shape = LAYERS[name]
    layer, x = pack_(randomise_(build()).eval()), torch.randn(shape)
    with torch.no_grad():
        layer(*((x, x, x) if name == 'attention' else (x,)))
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in layer.state_dict().values()]
    assert storages
    del layer
    gc.collect()
    assert [storage() for storage in storages] == [None] * len(storages)
