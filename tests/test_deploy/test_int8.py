"""``quantize_rest_``: real layers in int8, their calibration, report, files, and what follows them."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

import bnn_kernels
from bnn_plugins import fuse_, load_packed_, pack_, quantize_rest_, save_packed, unfuse_
from bnn_plugins.deploy import Int8Conv2d, Int8ConvTranspose2d, Int8Linear, int8_calibration
from bnn_plugins.layers import BinaryConv2d


@pytest.fixture(autouse=True)
def without_gradients():
    """With them a fused model runs unfused."""
    with torch.no_grad():
        yield


def image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), BinaryConv2d(16, 16, 3, padding=1, method='xnor'),
                         nn.BatchNorm2d(16), nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(),
                         nn.Linear(8 * 30 * 30, 10)).eval()


LAYERS = [
    (nn.Conv2d(6, 8, 3), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 9, (3, 2), (2, 1), (1, 0), 2, 3, bias=False), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 6, 2, padding='same', groups=2), image(2, 6, 9, 7)),
    (nn.Conv2d(6, 8, 3, padding=2, padding_mode='reflect'), image(2, 6, 9, 7)),
    (nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, 2), image(2, 6, 5, 4)),
    (nn.Linear(12, 5), image(2, 3, 12)),
    (nn.Linear(12, 5, bias=False), image(12)),
]


@pytest.mark.parametrize(('layer', 'x'), LAYERS)
def test_a_layer_is_its_formula(layer, x):
    """Float64 on the rounded weight and input: sums are exact, so only the last operations round."""
    torch.manual_seed(0)
    layer.reset_parameters()
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
    assert [row.name for row in report.replaced] == ['0', '4', '5', '7']
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


def tower() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), BinaryConv2d(16, 16, 3, padding=1, method='xnor'),
        nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.PReLU(32),
        nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.Hardtanh(), nn.Conv2d(32, 7, 1)).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.data.normal_()
    return model


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
def test_fused_layers_in_a_row_hand_over_eight_bits(dtype, memory):
    """What the layers compute one by one, but for norms folded into the affines."""
    model, x = pack_(tower()), image(2, 3, 32, 32)
    quantize_rest_(model, [x])
    model, x = model.to(dtype), x.to(dtype, memory_format=memory)
    one_by_one = model(x)
    report = fuse_(model)
    assert report.stems == {'0': 'int8: conv, norm, ReLU, sign of 3, words only',
                            '5': 'int8: conv, norm, PReLU, then 8, Hardtanh, then 10'}
    result = model(x)
    assert (result.dtype, result.stride()) == (one_by_one.dtype, one_by_one.stride())
    if dtype == torch.float32:  # bfloat16 layers one by one round between layers, and turn signs
        torch.testing.assert_close(result, one_by_one, atol=0.02, rtol=0)
    difference = (result - one_by_one).double().norm() / one_by_one.double().norm()
    assert float(difference.detach()) < (1e-3 if dtype == torch.float32 else 0.1)


def test_the_fused_row_is_exact_where_nothing_is_folded():
    model, x = pack_(nn.Sequential(*tower()[3:5], nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3))), \
        image(2, 16, 12, 12)
    quantize_rest_(model, [x])
    one_by_one = model(x)
    fuse_(model)
    for backend in ('cpu', 'reference'):
        with bnn_kernels.set_backend(backend):
            assert torch.equal(model(x), one_by_one)
    with torch.no_grad():
        model[4].scale.mul_(2), model[4].bias.mul_(2)
    unfuse_(model)
    doubled = model(x)
    fuse_(model)
    assert torch.equal(model(x), doubled)
    assert not torch.equal(doubled, one_by_one)
    with pytest.raises(ValueError, match='the model is fused'):
        quantize_rest_(model, [x])


def test_what_a_fused_row_leaves_alone():
    """Another reader, a hook, a padding that is not zeros."""
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.binary, self.first = BinaryConv2d(4, 4, 3, padding=1, method='xnor'), nn.Conv2d(4, 4, 1)
            self.second, self.third = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, padding_mode='circular')

        def forward(self, x):
            y = self.first(self.binary(x))
            return y, self.third(self.second(y))

    model, x = pack_(Branches()), image(1, 4, 8, 8)
    quantize_rest_(model, [x])
    one_by_one = model(x)
    assert fuse_(model).stems == {'first': 'int8: conv', 'second': 'int8: conv'}
    assert all(map(torch.equal, model(x), one_by_one))
    unfuse_(model)
    model.second.register_forward_hook(lambda *_: None)
    assert fuse_(model).stems == {'first': 'int8: conv'}
    assert all(map(torch.equal, model(x), one_by_one))


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


def test_nothing_of_an_image_is_cut_off():
    """'mse' gives up few large values for the others, in a layer that reads features; not in one that reads pixels."""
    def end(channels: int) -> float:
        x = image(1, channels, 64, 64) / 100
        x[0, 0, 0, 1] = 1.0
        model = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 4, 1))
        report = quantize_rest_(model, [x], most_error=10.0)
        assert report.rows[0].scheme.endswith('minmax' if channels <= 4 else 'mse')
        return float((255 - int(model[0].input_zero)) * model[0].input_scale)

    assert end(3) == pytest.approx(1.0, abs=0.01)
    assert end(8) < 0.9


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
