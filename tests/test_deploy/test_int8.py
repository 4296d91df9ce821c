"""``quantize_rest_``: real layers in int8, their calibration, report, files, and what follows them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import bnn_kernels
from bnn_plugins import fuse_, load_packed_, pack_, quantize_rest_, save_packed
from bnn_plugins.deploy import Int8Conv2d, Int8ConvTranspose2d, Int8Linear, int8_calibration
from bnn_plugins.layers import BinaryConv2d


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), BinaryConv2d(16, 16, 3, padding=1, method='xnor'),
                         nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(),
                         nn.Linear(8 * 30 * 30, 10)).eval()


LAYERS = [
    (nn.Conv2d(6, 8, 3), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 9, (3, 2), (2, 1), (1, 0), 2, 3, bias=False), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 6, 2, padding='same', groups=6), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 8, 3, padding=2, padding_mode='reflect'), image(2, 6, 9, 7)),
    (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, 2), image(2, 6, 5, 4)),
    (nn.Linear(12, 5), image(2, 3, 12)),
    (nn.Linear(12, 5, bias=False), image(12)),
]


@pytest.mark.parametrize(('layer', 'x'), LAYERS)
def test_a_layer_is_its_formula(layer, x):
    """Float64 on the rounded weight and input: sums are exact, so only the last operations round."""
    model = nn.Sequential(copy.deepcopy(layer))
    report = quantize_rest_(model, [x])
    int8, (row,) = model[0], report.rows
    assert row.scheme.startswith('int8')
    assert 0 < row.error < 0.02
    torch.testing.assert_close(int8(x), layer(x), atol=0.05 * float(layer(x).detach().abs().max()), rtol=0)

    rounded = copy.deepcopy(layer).double()
    scale = int8.scale.double() / int8.input_scale.double()
    weight = int8.weight_int8.double() * scale.view(-1, *[1] * (int8.weight_int8.dim() - 1))
    if isinstance(layer, nn.ConvTranspose2d):
        weight = bnn_kernels.transpose_weight(weight, layer.groups)
    rounded.weight.data.copy_(weight)
    seen = (bnn_kernels.quantize(x, int8.input_scale, int8.input_zero).double() - int8.input_zero) * int8.input_scale.double()
    torch.testing.assert_close(int8(x).double(), rounded(seen), atol=1e-5, rtol=1e-5)
    assert int8.weight_int8.dtype == torch.int8
    assert int8.weight_int8.abs().flatten(1).amax(1).eq(127).all()


@pytest.mark.parametrize('layer', [layer for layer, x in LAYERS if x.dim() == 4])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_memory_format_and_dtype_are_those_of_the_float_layer(layer, memory, dtype):
    model, x = nn.Sequential(copy.deepcopy(layer)), image(2, 6, 9, 7)
    quantize_rest_(model, [x])
    model, layer = model.to(dtype), copy.deepcopy(layer).to(dtype)
    x = x.to(dtype, memory_format=memory)
    y, expected = model(x), layer(x)
    assert (y.dtype, y.shape) == (expected.dtype, expected.shape)
    assert y.is_contiguous(memory_format=memory)
    assert model[0].scale.dtype == torch.float32


def test_transposed_to_a_size():
    layer, x = nn.ConvTranspose2d(4, 4, 3, 2, 1), image(1, 4, 5, 5)
    model = nn.Sequential(layer)
    quantize_rest_(model, [x])
    assert isinstance(model[0], Int8ConvTranspose2d)
    assert model[0](x, output_size=[10, 10]).shape == layer(x, output_size=[10, 10]).shape


def test_network_and_its_file(tmp_path):
    model, x = pack_(network()), image(4, 3, 32, 32)
    before = model(x).detach()
    whole = save_packed(model, tmp_path / 'float.safetensors').stat().st_size
    report = quantize_rest_(model, [x[:2], (x[2:],)])
    assert [row.name for row in report.int8] == ['0', '4', '5', '7']
    assert [type(model[place]) for place in (0, 4, 5, 7)] == [Int8Conv2d, Int8ConvTranspose2d, Int8Conv2d, Int8Linear]
    assert all(text in str(report) for text in ('4 of 4 real layers in int8', 'input uint8 by mse'))
    after = model(x).detach()
    assert 0 < float((after - before).norm() / before.norm()) < 0.3  # signs near 0 turn
    path = save_packed(model, tmp_path / 'int8.safetensors')
    assert path.stat().st_size < whole / 2
    for fresh in (network(), pack_(network())):
        assert torch.equal(load_packed_(fresh, path)(x), after)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), after)
    with pytest.raises(ValueError, match='is "int8 conv 3->16'):
        load_packed_(copy.deepcopy(model), save_packed(pack_(network()), tmp_path / 'float.safetensors'))


def test_fused_behind_it():
    model, x = pack_(network()), image(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    quantize_rest_(model, [x])
    expected = model(x)
    fuse_(model)
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match='the model is fused'):
        quantize_rest_(model, [x])


def test_what_stays_float_and_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.asked, self.good = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.computed = prune.identity(nn.Linear(4, 4), 'weight')
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.wide, self.by_name, self.bad = nn.Linear(2**16 + 1, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.asked(x) + self.good(x) + self.computed(x) + self.first(x) + self.second(x) + self.by_name(input=x)
            outlier = torch.cat([x, torch.full_like(x, 1e6)])
            return y + self.wide(x.new_zeros(1, 2**16 + 1)), self.bad(outlier)[:1] - self.bad.bias

    model = Odd()
    nn.init.zeros_(model.bad.bias)
    with torch.no_grad():
        model.bad.weight.copy_(torch.tensor([[1.0, -1, 1, -1]] * 4))  # what is large cancels, what is small is lost
    report = quantize_rest_(model, [dict(x=image(8, 4))], keep=['ask*'], calibration='minmax')
    schemes = {row.name: row.scheme.removeprefix('float: ') for row in report.rows}
    assert schemes == {
        'idle': 'it was not called', 'asked': 'asked for', 'good': 'int8: weight per channel, input uint8 by minmax',
        'computed': 'its weight is computed', 'first': 'its weight is that of second, too',
        'second': 'its weight is that of first, too', 'wide': 'it sums 65537 products, and int32 holds 65536',
        'by_name': 'it was not called', 'bad': 'the error is too large'}
    assert [type(module) is Int8Linear for name, module in model.named_modules() if name in ('good', 'bad')] == [True, False]


@pytest.mark.parametrize(('method', 'high'), [('minmax', (100.0, 100.0)), ('percentile', (0.9, 1.1)), ('mse', (1.0, 99.0))])
def test_calibration(method, high):
    """Values up to 1, and one of 100 in twenty thousand."""
    ranges = int8_calibration.Calibrated()
    values = torch.linspace(0, 1, 10000)
    for _ in range(2):
        ranges.add(torch.cat([values, torch.tensor([100.0])[:len(ranges.seen) == 0]]), values)
    ranges.seen = [torch.cat([values, torch.tensor([100.0]), values])]
    low, most = ranges.range(method)
    assert low == 0
    assert high[0] <= most <= high[1]


def test_zero_is_exact_and_both_ends_are_reached():
    ranges = int8_calibration.Calibrated()
    ranges.add(torch.tensor([-1.0, 3.0]), torch.zeros(1))
    scale, zero = ranges.quantization('minmax')
    assert (scale, zero) == (pytest.approx(4 / 255), 64)
    only_positive = int8_calibration.Calibrated()
    only_positive.add(torch.tensor([2.0, 3.0]), torch.zeros(1))
    assert only_positive.quantization('minmax') == (pytest.approx(3 / 255), 0)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(calibration='minmx'), "did you mean 'minmax'"), (dict(batches=[]), 'batches holds nothing'),
    (dict(model=nn.ReLU()), 'has no real convolution or linear layer')])
def test_one_sentence_for_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        quantize_rest_(**(dict(model=network(), batches=[image(1, 3, 32, 32)]) | change))


def test_the_model_is_run_as_asked():
    model, ran = nn.Sequential(nn.Linear(4, 4)), []
    quantize_rest_(model, ['batch'], run=lambda model, batch: ran.append((batch, F.relu(model(image(2, 4))))))
    assert [batch for batch, _ in ran] == ['batch', 'batch']
    assert isinstance(model[0], Int8Linear)
