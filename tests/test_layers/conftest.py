"""Binary LSTMs of all kinds, a sequence for them, and their gradients."""

import pytest
import torch

from bnn_plugins.layers import BinaryLSTM

VARIANTS = {
    'plain': {},
    'binary_if': dict(gates='binary_if'),
    'binary': dict(gates='binary', candidate='sign'),
    'weight_only': dict(weight_only=True),
    'no_norm': dict(norm='none'),
    'ln': dict(norm='ln'),
    'ln_inputs': dict(norm=('ln', 'static')),
    'tau': dict(expand=dict(tau=2, spread=0.3)),
    'deep': dict(num_layers=2, bidirectional=True),
    'bits_out': dict(num_layers=2, out='binary'),
    'no_bias': dict(bias=False),
    'gated_linear': dict(cell='gated_linear', bidirectional=True),
    'learned_scale': dict(method='recu'),
    'two_bits': dict(method=dict(type='dorefa', w_bits=2, a_bits=2)),
}


def build(**options) -> BinaryLSTM:
    lstm = BinaryLSTM(12, 8, **options)
    for p in lstm.parameters():  # norm weights, biases and thresholds away from their first values
        if p.ndim == 1:
            p.data = p + 0.3 * torch.rand_like(p)
    return lstm


@pytest.fixture(params=VARIANTS)
def lstm(request):
    return build(**VARIANTS[request.param])


@pytest.fixture
def x():
    return torch.randn(7, 3, 12)


def run(lstm, x, state=None):
    """Outputs, and the gradients of all parameters and of the input."""
    lstm.zero_grad()
    x = x.clone().requires_grad_()
    out, (h, c) = lstm(x, state)
    ((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum() + h.sum() + c.square().sum()).backward()
    return out, {'input': x.grad, **{name: p.grad.clone() for name, p in lstm.named_parameters()}}
