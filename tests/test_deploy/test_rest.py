"""Real layers in bfloat16, and convolutions that read the pixels of images."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnn_kernels
from bnn_plugins import fuse_, load_packed_, pack_, quantize_rest_, save_packed, verify
from bnn_plugins.deploy import Bfloat16Conv2d, Bfloat16ConvTranspose2d, Bfloat16Linear, Int8Pixels2d
from bnn_plugins.deploy.fused import fused_parts
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .test_int8 import LAYERS, image, network

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize(('layer', 'x'), LAYERS)
def test_a_bfloat16_layer_is_its_formula(layer, x):
    """The sums of rounded factors in float64, rounded to bfloat16 once; then the bias in float32."""
    torch.manual_seed(0)
    layer.reset_parameters()
    model = nn.Sequential(copy.deepcopy(layer))
    report = quantize_rest_(model, [x], 'bfloat16')
    assert report.rows[0].scheme == 'bfloat16: weight and input'
    assert 0 < report.rows[0].error < 0.01
    rounded = copy.deepcopy(layer).double()
    rounded.weight.copy_(layer.weight.bfloat16())
    bias, rounded.bias = rounded.bias, None
    sums = rounded(x.bfloat16().double())
    found = model(x).double()
    if bias is not None:
        found = found - (bias if isinstance(layer, nn.Linear) else bias.view(-1, 1, 1))
    assert ((found - sums).abs() <= 2**-8 * sums.abs() + 1e-5).all()
    assert model[0].weight.dtype == torch.bfloat16


def test_a_bfloat16_network_and_its_file(tmp_path):
    latent, x = network(), image(4, 3, 32, 32)
    model = pack_(copy.deepcopy(latent))
    whole = save_packed(model, tmp_path / 'float.safetensors').stat().st_size
    report = quantize_rest_(model, [x], 'bfloat16', keep=['0'])
    assert [row.name for row in report.replaced] == ['4', '5', '7']
    assert [type(model[place]) for place in (4, 5, 7)] == [Bfloat16ConvTranspose2d, Bfloat16Conv2d, Bfloat16Linear]
    assert '3 of 4 real layers in bfloat16' in str(report)
    after = model(x)
    path = save_packed(model, tmp_path / 'bfloat16.safetensors')
    assert path.stat().st_size < 0.6 * whole
    for fresh in (network(), pack_(network())):
        assert torch.equal(load_packed_(fresh, path)(x), after)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(model).double().float()):
        assert torch.equal(other(x), after)
        assert other[7].weight.dtype == torch.bfloat16
    for fused in (False, True):
        if fused:
            fuse_(model)
            assert any(fused_parts(model))
        checked = verify(latent, model, x)
        assert checked.ok, checked
        assert '3 real layers in bfloat16' in checked.summary()
        assert 0 < checked.rest < 0.1
    model[7].weight.mul_(-1)
    assert not verify(latent, model, x).ok


def photographs(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels.float() - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def stem() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 7, 2, 3), nn.BatchNorm2d(16), nn.MaxPool2d(3, 2, 1),
                         BinaryConv2d(16, 16, 3, padding=1, method='xnor'), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 1)).eval()


@pytest.mark.parametrize('options', [{}, dict(stride=2, padding=3), dict(padding=1, dilation=2, bias=False)], ids=str)
def test_a_convolution_of_pixels_is_its_formula(options):
    """Integers: what the pixels are above the mean as a whole pixel, times the weights; then float32, in this order."""
    torch.manual_seed(0)
    layer, pixels = nn.Conv2d(3, 8, 3, **options), photographs(2, 3, 19, 16)
    model = nn.Sequential(copy.deepcopy(layer))
    report = quantize_rest_(model, [normalised(pixels)], image=dict(mean=MEAN, std=STD))
    assert report.rows[0].scheme == 'int8: weight per channel, input uint8 the pixels'
    int8 = model[0]
    assert type(int8) is Int8Pixels2d
    assert int8.input_zero.tolist() == [124, 116, 104]
    sums = F.conv2d(pixels.double() - int8.input_zero.double().view(-1, 1, 1), int8.weight_int8.double(), None, layer.stride,
                    layer.padding, layer.dilation)
    expected = sums.float() * int8.scale.view(-1, 1, 1) + int8.bias.view(-1, 1, 1)
    for backend in ('cpu', 'reference'):
        if bnn_kernels.available_backends()[backend] == 'available':
            with bnn_kernels.set_backend(backend):
                assert torch.equal(int8(pixels), expected)
                assert torch.equal(int8(normalised(pixels)), expected), 'normalised pixels are turned back'
    difference = expected - layer(normalised(pixels))
    assert float(difference.norm() / expected.norm()) < 0.01
    assert ((difference.abs() / int8.bound(layer, normalised(pixels))) <= 1).all()


def test_a_network_takes_pixels(tmp_path):
    latent, pixels = stem(), photographs(2, 3, 32, 40)
    x = normalised(pixels)
    model = pack_(copy.deepcopy(latent))
    quantize_rest_(model, [x], image=dict(mean=MEAN, std=STD))
    one_by_one = model(x)
    assert torch.equal(model(pixels), one_by_one)
    path = save_packed(model, tmp_path / 'model.safetensors')
    assert fuse_(model).stems['0'].startswith('int8: conv')
    assert torch.equal(load_packed_(stem(), path)(pixels), one_by_one)
    fused = model(pixels)
    assert torch.equal(model(x), fused)
    assert torch.equal(model(pixels.to(memory_format=torch.channels_last)), fused)
    assert float((fused - one_by_one).norm() / one_by_one.norm()) < 1e-3
    checked = verify(latent, model, x)
    assert checked.ok, checked
    assert {row.kind for row in checked.rows if row.name == '0'} >= {'int8-pixels'}


@pytest.mark.parametrize(('layer', 'x'), [
    (nn.Conv2d(3, 8, 3), normalised(photographs(2, 3, 9, 9)) + 0.3 / 57), (nn.Conv2d(3, 8, 3), image(2, 3, 9, 9)),
    (nn.Conv2d(3, 8, 3, padding=1, padding_mode='reflect'), normalised(photographs(2, 3, 9, 9))),
    (nn.Conv2d(3, 6, 3, groups=3, bias=False), normalised(photographs(2, 3, 9, 9)))],
    ids=['between', 'noise', 'reflect', 'groups'])
def test_what_reads_no_pixels(layer, x):
    model = nn.Sequential(copy.deepcopy(layer))
    quantize_rest_(model, [x], image=dict(mean=MEAN, std=STD), most_error=1.0)
    assert not isinstance(model[0], Int8Pixels2d)


def test_one_mean_for_all_channels_and_padded_images():
    pixels = photographs(1, 3, 12, 12)
    x = F.pad((pixels.float() - 127.5) / 127.5, (0, 4, 0, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    quantize_rest_(model, [x], image=dict(mean=127.5, std=127.5))
    assert isinstance(model[0], Int8Pixels2d)
    assert torch.equal(model(x), model(F.pad(pixels, (0, 4, 0, 4), value=128)))


def test_an_unknown_rest():
    with pytest.raises(ValueError, match="Unknown rest 'bf16': did you mean 'bfloat16'"):
        quantize_rest_(network(), [image(1, 3, 32, 32)], 'bf16')


class Mixed(nn.Module):
    """Linear and transposed layers in int8, some behind each other."""

    def __init__(self):
        super().__init__()
        self.binary, self.norm = BinaryConv2d(8, 8, 3, padding=1, method='xnor'), nn.BatchNorm2d(8)
        self.up, self.up_norm = nn.ConvTranspose2d(8, 12, 3, 2, 1, 1, groups=2), nn.BatchNorm2d(12)
        self.conv, self.first, self.second = nn.Conv2d(12, 8, 1), nn.Linear(8, 20), nn.Linear(20, 6)
        self.act, self.third = nn.PReLU(6), nn.Linear(6, 5)
        self.reader = BinaryConv2d(12, 4, 3, method='xnor')

    def forward(self, x):
        y = F.relu(self.up_norm(self.up(self.norm(self.binary(x)))))
        rows = self.conv(y).flatten(2).transpose(1, 2)
        return self.third(self.act(self.second(F.relu(self.first(rows))).transpose(1, 2)).transpose(1, 2)), self.reader(y)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_linear_and_transposed_layers_are_fused(dtype):
    torch.manual_seed(0)
    latent, x = Mixed().eval(), image(2, 8, 9, 7)
    model = pack_(copy.deepcopy(latent))
    quantize_rest_(model, [x])
    model, x = model.to(dtype), x.to(dtype)
    one_by_one = model(x)
    report = fuse_(model)
    assert report.stems == {
        'up': 'int8: transposed conv, norm, relu, sign of reader', 'conv': 'int8: conv',
        'first': 'int8: linear, relu, then second', 'third': 'int8: linear'}
    for _ in range(2):
        found = model(x)
        for one, other in zip(found, one_by_one, strict=True):
            assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
            assert float((one - other).double().norm() / other.double().norm()) < (1e-3 if dtype == torch.float32 else 0.1)
    if dtype == torch.float32:
        checked = verify(latent, model, x)
        assert checked.ok, checked


@pytest.mark.parametrize('shape', [(16,), (3, 16), (2, 5, 16), (0, 16)], ids=str)
def test_int8_linear_layers_in_a_row_are_exact(shape):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8), nn.Hardtanh(), nn.Linear(8, 4),
                          nn.Unflatten(-1, (4, 1, 1)), BinaryConv2d(4, 4, 1, method='xnor')).eval()
    x = image(6, 16)
    pack_(model)
    quantize_rest_(model, [x])
    model = nn.Sequential(*model[:5])
    x = image(*shape) if shape != (0, 16) else torch.zeros(shape)
    one_by_one = model(x)
    model.append(BinaryLinear(4, 4, method='xnor'))
    pack_(model)
    expected = model(x)
    assert fuse_(model).stems == {'0': 'int8: linear, ReLU, then 2, Hardtanh, then 4'}
    for backend in ('cpu', 'reference'):
        if bnn_kernels.available_backends()[backend] == 'available':
            with bnn_kernels.set_backend(backend):
                assert torch.equal(model(x), expected)
    seen = []
    model[5].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    fuse_(model)
    model(x)
    assert torch.equal(seen[0], one_by_one)
