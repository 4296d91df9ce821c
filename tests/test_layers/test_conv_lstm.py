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


def sigmoid(z):
    return 1 / (1 + (-z).exp())


@pytest.mark.parametrize('packed', [False, True])
@torch.no_grad()
def test_equations_of_each_clip_with_its_own_state(packed):
    """Two clips, two frames, states that differ from clip to clip, against the equations in float64."""
    lstm = BinaryConvLSTM(6, 8, kernel_size=3, pad_value=1).eval()
    cell, clip = lstm.cells[0], torch.randn(2, 2, 6, 5, 7)  # frames, clips
    for product in (cell.input, cell.hidden):
        product.activation.shift.normal_(std=0.3)
        product.norm.weight.uniform_(0.5, 1.5)
    cell.bias.normal_(std=0.3)
    first = torch.randn(2, 8, 5, 7), torch.randn(2, 8, 5, 7)

    def product(part, x, pad):
        signs = torch.where(x + part.activation.shift.double().view(-1, 1, 1) >= 0, 1.0, -1.0).double()
        weight = torch.where(part.weight >= 0, 1.0, -1.0).double()
        acc = torch.nn.functional.conv2d(torch.nn.functional.pad(signs, (1, 1, 1, 1), value=pad), weight)
        return acc * (part.norm.weight.double() / (2 * weight[0].numel()) ** 0.5).view(-1, 1, 1)

    h, c = (s.double() for s in first)
    states = []
    for frame in clip:
        z = product(cell.input, frame, 1.0) + product(cell.hidden, h.float(), -1.0) + cell.bias.double().view(-1, 1, 1)
        i, f, g, o = z.chunk(4, 1)
        c = sigmoid(f) * c + sigmoid(i) * g.tanh()
        h = sigmoid(o) * c.tanh()
        states.append(h)
    out, ((last_h, last_c),) = (pack_(lstm) if packed else lstm)(clip, [first])
    for found, expected in ((out, torch.stack(states)), (last_h, h), (last_c, c)):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_clips_of_a_batch_do_not_see_each_other(conv_lstm):
    """Each clip of a batch, with its own state, is what it is alone."""
    conv_lstm.eval()
    clips = torch.randn(3, 4, 6, 5, 7)
    for model in (conv_lstm, pack_(copy.deepcopy(conv_lstm))):
        _, states = model(clips[:, :2])
        out, ends = model(clips[:, 2:], states)
        for i in range(3):
            alone, end = model(clips[i:i + 1, 2:], [tuple(s[i:i + 1] for s in state) for state in states])
            torch.testing.assert_close(out[i:i + 1], alone)
            torch.testing.assert_close([tuple(s[i:i + 1] for s in state) for state in ends], end)
