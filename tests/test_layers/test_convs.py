"""Convolutions over sequences and videos, and transposed ones: formula, packed form, conversion."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from bnn_plugins import BNNConfig, binarize_, fuse_, load_packed_, pack_, save_packed, summarize, verify
from bnn_plugins.binarize import list_methods
from bnn_plugins.deploy import weight_levels
from bnn_plugins.layers import BinaryConv1d, BinaryConv3d, BinaryConvTranspose2d, BinaryLayer

VARIANTS = [dict(type='dorefa', w_bits=2, a_bits=2), dict(type='binaryconnect')]
KINDS = {
    'sequence': (lambda **kw: BinaryConv1d(6, 8, 4, stride=2, padding=3, dilation=2, groups=2, **kw), (3, 6, 17)),
    'sequence_same': (lambda **kw: BinaryConv1d(40, 8, 4, padding='same', bias=False, **kw), (2, 40, 9)),
    'video': (lambda **kw: BinaryConv3d(6, 4, (3, 2, 3), (2, 1, 2), (2, 1, 0), groups=2, **kw), (2, 6, 5, 6, 7)),
    'video_same': (lambda **kw: BinaryConv3d(33, 4, (2, 3, 2), padding='same', dilation=(2, 1, 1), **kw), (2, 33, 4, 5, 3)),
    'short_video': (lambda **kw: BinaryConv3d(6, 4, 3, stride=2, padding=3, dilation=(3, 1, 1), **kw), (1, 6, 2, 5, 5)),
    'transposed': (lambda **kw: BinaryConvTranspose2d(6, 4, (3, 2), 2, (1, 0), 1, 2, **kw), (2, 6, 4, 5)),
    'transposed_dilated': (lambda **kw: BinaryConvTranspose2d(40, 4, 3, 3, 2, dilation=2, bias=False, **kw), (2, 40, 3, 4)),
}


def sums_by_taps(layer, levels, filters):
    """Int ``[N, O, ...]``, one tap after the other, for any number of dimensions."""
    dims, transposed = len(layer.kernel_size), layer.transposed
    if transposed:
        extra = [o - p for o, p in zip(layer.output_padding, layer.padding, strict=True)]
        size = [(n - 1) * s + d * (k - 1) + 1 + e - p for n, s, d, k, e, p in zip(
            levels.shape[2:], layer.stride, layer.dilation, layer.kernel_size, extra, layer.padding, strict=True)]
        before = layer.padding
    else:
        # torch names the last dimension first
        pads = np.array(layer._reversed_padding_repeated_twice[::-1]).reshape(dims, 2)[:, ::-1]
        levels = np.pad(levels, [(0, 0), (0, 0), *pads.tolist()], constant_values=layer.pad_value)
        size = [(n - d * (k - 1) - 1) // s + 1
                for n, s, d, k in zip(levels.shape[2:], layer.stride, layer.dilation, layer.kernel_size, strict=True)]
    out = np.zeros((len(levels), len(filters), *size))
    share, mine = filters.shape[1], len(filters) // layer.groups
    for group in range(layer.groups):
        x, rows = levels[:, group * share:(group + 1) * share], slice(group * mine, (group + 1) * mine)
        for tap in itertools.product(*map(range, layer.kernel_size)):
            for place in itertools.product(*map(range, x.shape[2:] if transposed else size)):
                if transposed:
                    there = [p * s + t * d - b for p, s, t, d, b in
                             zip(place, layer.stride, tap, layer.dilation, before, strict=True)]
                    if not all(0 <= t < n for t, n in zip(there, size, strict=True)):
                        continue
                    out[(slice(None), rows, *there)] += x[(..., *place)] @ filters[(rows, slice(None), *tap)].T
                else:
                    here = [p * s + t * d for p, s, t, d in zip(place, layer.stride, tap, layer.dilation, strict=True)]
                    out[(slice(None), rows, *place)] += x[(..., *here)] @ filters[(rows, slice(None), *tap)].T
    return out


@pytest.mark.parametrize('pad_value', [-1, 0, 1])
@pytest.mark.parametrize('kind', KINDS)
def test_sums_are_those_of_the_formula(kind, pad_value):
    """Mutations: taps of a transposed convolution in another order; ``before`` and ``after`` swapped; a step in time less."""
    build, shape = KINDS[kind]
    if kind.startswith('transposed'):
        layer = build(method='xnor')
    else:
        layer = build(method='xnor', pad_value=pad_value)
    x = torch.randn(shape)
    x[0, 0] = 0
    levels = layer.activation(x).detach().double().numpy()
    expected = sums_by_taps(layer, levels, weight_levels(layer).double().numpy())
    packed = pack_(nn.Sequential(layer.eval()))[0]
    found = packed._accumulate(x)
    assert found.dtype == torch.int32
    assert torch.equal(found, torch.from_numpy(expected).to(torch.int32))
    assert torch.equal(layer._multiply(layer.activation(x), weight_levels(layer)), found.float())
    assert torch.equal(weight_levels(packed), weight_levels(layer))


@pytest.mark.parametrize('method', [*list_methods(), *VARIANTS], ids=str)
@pytest.mark.parametrize('kind', KINDS)
def test_packed_is_latent_and_every_filter_learns(kind, method):
    build, shape = KINDS[kind]
    layer, x = build(method=method), torch.randn(shape, requires_grad=True)
    for p in layer.parameters():
        if p.ndim == 1:
            p.data = p + 0.3 * torch.rand_like(p)
    out = layer.train()(x)
    (out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    assert x.grad.any()
    layer.eval()
    for given in (x, x.detach().transpose(1, -1).contiguous().transpose(1, -1)):
        expected, found = layer(given), pack_(nn.Sequential(layer))(given)
        assert torch.equal(found, expected)
        assert found.stride() == expected.stride()


def test_expanded(tmp_path):
    """An expanded sequence and an expanded video, each with a norm before the sign."""
    options = dict(padding=1, pre_norm=True)
    model = nn.Sequential(BinaryConv1d(8, 16, 3, method='reactnet', expand=dict(tau=2, groups=2), **options),
                          nn.Unflatten(2, (2, 2, 3)),
                          BinaryConv3d(16, 8, 3, method='bireal', expand=dict(tau=2, style='drop_in'), **options))
    x = torch.randn(2, 8, 12)
    model.train()(x)
    expected = model.eval()(x)
    assert torch.equal(pack_(model)(x), expected)


@pytest.mark.parametrize('output_size', [(9, 9), (9, 10)])
def test_output_size(output_size):
    layer, x = BinaryConvTranspose2d(6, 4, 3, 2, 1, method='bireal').eval(), torch.randn(1, 6, 5, 5)
    with pytest.raises(ValueError, match='requested an output size'):
        layer(x, output_size=(20, 20))
    expected = layer(x, output_size=output_size)
    assert expected.shape[2:] == output_size
    assert torch.equal(pack_(nn.Sequential(layer))[0](x, output_size=output_size), expected)


@pytest.mark.parametrize(('kind', 'said'), [('sequence', r'BinaryConv1d takes \[N, C, L\], but got \(6, 17\)'),
                                            ('video', r'BinaryConv3d takes \[N, C, D, H, W\], but got'),
                                            ('transposed', r'BinaryConvTranspose2d takes \[N, C, H, W\], but got')])
def test_a_batch_is_needed(kind, said):
    build, shape = KINDS[kind]
    with pytest.raises(ValueError, match=said):
        build()(torch.randn(shape[1:]))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.video = nn.Conv3d(3, 8, 3, padding=1), nn.Conv3d(8, 8, (3, 3, 3), 1, 1)
        self.sequence, self.up = nn.Conv1d(8, 8, 3, padding=1), nn.ConvTranspose2d(8, 6, 2, 2)
        self.norm, self.out = nn.BatchNorm3d(8), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.norm(self.video(self.first(x)))
        x = x + self.sequence(x.flatten(2)).view(x.shape)
        return self.out(self.up(x.mean(2)))


def test_converted_saved_fused_and_counted(tmp_path):
    model, x = Net(), torch.randn(2, 3, 2, 4, 4)
    report = binarize_(model, BNNConfig('bireal'), x)
    assert {row.name: row.reason for row in report.rows if not row.binary} == {
        'first': 'reads the image (3 channels)',
        'out': 'prediction: the outputs of the model, or its loss, read it (data flow)'}
    assert [type(module).__name__ for module in model.modules() if isinstance(module, BinaryLayer)] == [
        'BinaryConv3d', 'BinaryConv1d', 'BinaryConvTranspose2d']
    model.train()(x).sum().backward()
    expected = model.eval()(x)
    packed = pack_(copy.deepcopy(model))
    assert torch.equal(packed(x), expected)
    again = load_packed_(copy.deepcopy(model), save_packed(packed, tmp_path / 'packed.safetensors'))
    assert torch.equal(again(x), expected)
    rows = {row.name: row for row in summarize(packed, x).rows}
    assert [rows[name].macs for name in ('first', 'video', 'sequence', 'up', 'out')] == [
        8 * 32 * 81, 8 * 32 * 216, 8 * 32 * 24, 8 * 16 * 24, 2 * 64 * 6]
    assert all(rows[name].params_binary for name in ('video', 'sequence', 'up'))
    fuse_(packed)
    assert verify(model, packed, x).ok


def test_a_video_that_no_tap_reads():
    """Its one image lies between the two taps; mutation: no sums are no tensor."""
    layer = BinaryConv3d(4, 6, (2, 1, 1), padding=(2, 0, 0), dilation=(3, 1, 1), method='xnor').eval()
    x = torch.randn(2, 4, 1, 3, 3)
    expected = layer(x)
    assert torch.equal(pack_(layer)(x), expected)
