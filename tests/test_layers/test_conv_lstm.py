"""Binary LSTMs of maps: gradients, clips in halves, packing, what is outside of a map."""

import copy

import pytest
import torch

from bnn_plugins import pack_, verify
from bnn_plugins.layers import BinaryConvLSTM

CONV_VARIANTS = [dict(), dict(gates='binary', candidate='sign'), dict(norm='ln'), dict(weight_only=True, norm='none'),
                 dict(num_layers=2, out='binary'), dict(expand=dict(tau=2)), dict(pad_value=-1)]


@pytest.fixture(params=CONV_VARIANTS, ids=str)
def conv_lstm(request):
    return BinaryConvLSTM(6, 8, batch_first=True, **request.param)


def test_maps(conv_lstm):
    """Shapes, gradients, the state between two halves of a clip, packing."""
    clip = torch.randn(2, 4, 6, 5, 7, requires_grad=True)
    out, states = conv_lstm.train()(clip)
    assert out.shape == (2, 4, 8, 5, 7)
    (out.sum() + sum(c.square().sum() for _, c in states)).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in conv_lstm.parameters())
    conv_lstm.eval()
    with torch.no_grad():
        whole, states = conv_lstm(clip)
        first, middle = conv_lstm(clip[:, :1])
        second, last = conv_lstm(clip[:, 1:], middle)
    assert torch.equal(torch.cat([first, second], 1), whole)
    assert torch.equal(last[-1][1], states[-1][1])
    packed = pack_(copy.deepcopy(conv_lstm))
    assert torch.equal(packed(clip)[0], whole)
    assert verify(conv_lstm, packed, clip).ok


def test_outside_of_the_map_the_hidden_bits_are_the_first_ones():
    cell = BinaryConvLSTM(6, 8).eval().cells[0]
    assert cell.hidden.pad_value == -1
    z = cell.hidden(-torch.ones(1, 8, 5, 7))
    assert torch.equal(z, z[..., :1, :1].expand_as(z)), 'no border before the first frame'
    with pytest.raises(ValueError, match='kernel_size must be odd'):
        BinaryConvLSTM(6, 8, kernel_size=2)
    with pytest.raises(ValueError, match='takes clips'):
        BinaryConvLSTM(6, 8)(torch.zeros(1, 6, 5, 7))
