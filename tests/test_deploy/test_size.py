"""How large a packed file is: counted here from the shapes, written there, predicted by ``summarize``."""

import pytest
import torch
from torch import nn

from bnn_plugins import pack_, save_packed, summarize
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.layers import BinaryConv2d, BinaryLayer

METHODS = ['reactnet', 'xnor', 'binarynet', dict(type='dorefa', w_bits=2, a_bits=2)]


def resnet(method, **kwargs):
    backbones = pytest.importorskip('bnn_plugins.models.backbones')
    return backbones.BNNResNet(18, method=method, **kwargs).eval()


def predicted_bytes(model, method):
    """Bits of whole words, a float per filter or layer for the scale, one per channel for the threshold; the rest as it is."""
    bits = method['w_bits'] if isinstance(method, dict) else 1
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    for layer in model.modules():
        if isinstance(layer, BinaryConv2d):
            total -= 4 * layer.weight.numel()
            words = -(-layer.in_channels // layer.groups // 32)
            total += bits * 4 * layer.out_channels * layer.kernel_size[0] * layer.kernel_size[1] * words
            total += {'binarynet': 0, 'xnor': 4 * layer.out_channels, 'reactnet': 4 * layer.out_channels}.get(str(method), 4)
    return total


@pytest.mark.parametrize('method', METHODS, ids=str)
def test_resnet18(method, tmp_path):
    model = resnet(method)
    expected = predicted_bytes(model, method)
    summary = summarize(model, torch.randn(1, 3, 32, 32), {'model': {}}, {'classes': ['a', 'b']})
    latent = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    assert len(latent) == 16
    floats = 4 * sum(m.weight.numel() for m in latent)
    pack_(model)
    binary = [m for m in model.modules() if isinstance(m, PackedLayer)]
    assert len(binary) == 16
    tensors = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert tensors == expected == summary.totals.bytes_packed
    layers = sum(t.nbytes for m in binary for t in m.state_dict().values())
    if method != METHODS[-1]:
        assert layers <= floats / 20
        assert layers <= floats / 30 or method == 'reactnet'
        assert summary.layer_compression == pytest.approx(floats / layers)
    size = save_packed(model, tmp_path / 'net.safetensors', {'model': {}}, {'classes': ['a', 'b']}).stat().st_size
    assert size == summary.bytes_file
    header = sum(len(name) + 75 for name in model.state_dict())  # name, dtype, shape and offsets of each tensor as JSON
    header += sum(len(name) + len(m.signature()) + 12 for name, m in model.named_modules() if m in binary)
    assert abs(size - expected - header) < 0.01 * size


def test_bytes_file_of_a_packed_model(tmp_path):
    model = pack_(resnet('reactnet', base_channels=8))
    summary = summarize(model, torch.randn(1, 3, 32, 32))
    assert save_packed(model, tmp_path / 'a.safetensors').stat().st_size == summary.bytes_file


def test_config_and_meta_count(tmp_path):
    model = nn.Sequential(BinaryConv2d(8, 8, 3)).eval()
    x = torch.randn(1, 8, 5, 5)
    plain, more = summarize(model, x).bytes_file, summarize(model, x, {'x': 'x' * 1000}, {'a': 'b' * 1000}).bytes_file
    assert 2000 <= more - plain < 2050
    assert save_packed(pack_(model), tmp_path / 'a', {'x': 'x' * 1000}, {'a': 'b' * 1000}).stat().st_size == more


@pytest.mark.parametrize(('channels', 'words'), [(1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_whole_words(channels, words):
    for groups in (1, 3):
        layer = pack_(BinaryConv2d(channels * groups, 6, 3, groups=groups, method='binarynet', bias=False))
        assert sum(t.nbytes for t in layer.state_dict().values()) == 4 * 6 * 9 * words
