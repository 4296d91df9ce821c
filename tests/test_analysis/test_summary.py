"""``summarize``: every number against one worked out by hand, and the figures that the literature gives."""

import copy
import csv
import io

import pytest
import torch
from rich.console import Console
from torch import nn

import bnn_kernels
from bnn_plugins import list_methods, pack_, save_packed, summarize
from bnn_plugins.analysis.summary import size
from bnn_plugins.deploy import read_packed
from bnn_plugins.deploy.file import serialize
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU, SqueezeExcite, expanded_width
from bnn_plugins.models import BNNReActNet


class Net(nn.Module):
    """``[N, 3, 8, 12]``; one layer of each kind, a binary head on two maps, a layer that does not run."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.plain = BinaryConv2d(8, 16, 3, padding=1, bias=False, method='bireal')
        self.grouped = BinaryConv2d(16, 16, 3, padding=1, groups=4, method='reactnet')
        self.wide = BinaryConv2d(16, 8, 1, method=dict(type='dorefa', w_bits=2, a_bits=3))
        self.weights_only = BinaryConv2d(8, 8, (1, 3), padding=(0, 1), method='binaryconnect')
        self.up = nn.ConvTranspose2d(8, 6, 2, 2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = BinaryConv2d(6, 4, 1, method='binarynet', pre_norm=True)
        self.binary_fc = BinaryLinear(4, 10, method='xnor')
        self.fc = nn.Linear(10, 5, bias=False)
        self.unused = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        x = self.weights_only(self.wide(self.grouped(self.plain(self.stem(x)))))
        x = self.norm(self.up(x))
        maps = [self.head(x), self.head(x[..., ::2, ::2])]
        return self.fc(self.binary_fc(maps[1].mean((2, 3))))


PIXELS, UP, HALF = 4 * 6, 8 * 12, 4 * 6
MACS = dict(stem=PIXELS * 8 * 27, plain=PIXELS * 16 * 72, grouped=PIXELS * 16 * 36, wide=PIXELS * 8 * 16,
            weights_only=PIXELS * 8 * 24, up=PIXELS * 8 * 3 * 4, head=(UP + HALF) * 4 * 6, binary_fc=40, fc=50, unused=0)
# (bits, output, quantized weights, real numbers, BOPs per multiply-accumulate or 0 for FLOPs, packed bytes)
EXPECTED = dict(
    stem=('32x32', '8x4x6', 0, 216 + 8, 0, 4 * 224),
    plain=('1x1', '16x4x6', 1152, 16, 1, 4 * (16 * 9) + 4 * 16),
    grouped=('1x1', '16x4x6', 576, 16 + 16 + 16, 1, 4 * (16 * 9) + 4 * 48),
    wide=('2x3', '8x4x6', 128, 1 + 8, 6, 4 * (2 * 8) + 4 * 9),
    weights_only=('1x32', '8x4x6', 192, 8, 0, 4 * (8 * 3) + 4 * 8),
    up=('32x32', '6x8x12', 0, 96 + 6, 0, 4 * 102),
    head=('1x1', '4x4x6', 24, 4 + 6 + 6 + 1, 1, 4 * 4 + 4 * 16 + 8),  # bias, mean and variance; the count has eight bytes
    binary_fc=('1x1', '10', 40, 20, 1, 4 * 10 + 4 * 20),
    fc=('32x32', '5', 0, 50, 0, 4 * 50),
    unused=('32x32', '', 0, 6, 0, 24))
OTHERS = 4 * 6 + 1  # weight, bias, mean, variance, count of the norm
COUNTS = ('name', 'bits', 'output', 'params_binary', 'params_float', 'macs', 'flops', 'bops', 'ops', 'muls', 'bytes_in',
          'bytes_out', 'bytes_float', 'bytes_packed')


SUMS = ('params_binary', 'params_float', 'macs', 'flops', 'bops', 'ops', 'muls', 'bytes_in', 'bytes_out', 'bytes_float',
        'bytes_latent', 'bytes_packed')


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 12)


def rows_of(summary):
    return {row.name: row for row in summary.rows}


@pytest.mark.parametrize('packed', [False, True])
def test_by_hand(packed, image):
    model = pack_(Net()) if packed else Net()
    rows = rows_of(summarize(model, image))
    assert list(rows) == [*EXPECTED, '(others)'], 'in the order of the model'
    for name, (bits, output, binary, real, bops, packed_bytes) in EXPECTED.items():
        row = rows[name]
        assert row.kind == type(model.get_submodule(name)).__name__
        assert (row.bits, row.output) == (bits, output), name
        assert (row.params_binary, row.params_float) == (binary, real), name
        assert row.macs == MACS[name], name
        assert (row.bops, row.flops) == ((MACS[name] * bops, 0) if bops else (0, MACS[name])), name
        assert row.ops == row.flops + row.bops / 64
        assert row.bytes_packed == packed_bytes, name
        weights = binary or real
        biases = 0 if not binary or model.get_submodule(name).bias is None else model.get_submodule(name).bias.numel()
        assert row.bytes_float == 4 * (weights + biases), name
        state = model.get_submodule(name).state_dict().values()
        assert row.bytes_latent == sum(t.nbytes for t in state), name
    others = rows['(others)']
    assert (others.params_float, others.params_binary, others.ops) == (OTHERS, 0, 0)
    assert others.bytes_float == others.bytes_latent == others.bytes_packed == 4 * 24 + 8


@pytest.mark.parametrize('packed', [False, True])
def test_totals(packed, image, tmp_path):
    model = pack_(Net()) if packed else Net()
    summary = summarize(model, image)
    for name in SUMS:
        assert getattr(summary.totals, name) == sum(getattr(row, name) for row in summary.rows), name
    assert summary.totals.kind == 'Net'
    assert summary.totals.macs == sum(MACS.values())
    assert summary.totals.bytes_latent == sum(t.nbytes for t in model.state_dict().values())
    path = save_packed(model if packed else pack_(model), tmp_path / 'net.safetensors')
    assert summary.totals.bytes_packed == sum(t.nbytes for t in read_packed(path).tensors.values())
    assert summary.bytes_file == path.stat().st_size
    assert summary.compression == summary.totals.bytes_float / summary.totals.bytes_packed
    binary = [name for name, row in EXPECTED.items() if row[2]]
    expected = sum(rows_of(summary)[n].bytes_float for n in binary) / sum(rows_of(summary)[n].bytes_packed for n in binary)
    assert summary.layer_compression == expected
    real = MACS['stem'] + MACS['up'] + MACS['fc'] + MACS['weights_only']
    assert summary.binary_share == pytest.approx(1 - real / sum(MACS.values()))


@pytest.mark.parametrize('method', [*list_methods(), dict(type='dorefa', w_bits=3, a_bits=2)], ids=str)
def test_latent_and_packed_give_the_same_counts(method):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), BinaryConv2d(8, 8, 3, method=method), nn.BatchNorm2d(8), nn.Flatten(),
                          BinaryLinear(8 * 9, 4, method=method))
    x = torch.randn(2, 3, 7, 7)
    latent, packed = summarize(model, x), summarize(pack_(copy.deepcopy(model)), x)
    for left, right in zip([*latent.rows, latent.totals], [*packed.rows, packed.totals], strict=True):
        for name in COUNTS:
            assert getattr(left, name) == getattr(right, name), name
    assert latent.bytes_file == packed.bytes_file
    assert packed.totals.bytes_latent == packed.totals.bytes_packed
    assert [row.kind for row in latent.rows[:2]] == ['Conv2d', 'BinaryConv2d']
    assert [row.kind for row in packed.rows[:2]] == ['Conv2d', 'PackedConv2d']


def test_folded_norms_are_counted():
    fuse_conv_bn = pytest.importorskip('mmcv.cnn').fuse_conv_bn
    model = nn.Sequential(BinaryConv2d(8, 6, 3, bias=False, method='bireal'), nn.BatchNorm2d(6)).eval()
    row = summarize(fuse_conv_bn(model), torch.randn(1, 8, 5, 5)).rows[0]
    assert row.params_float == 3 * 6, 'scale, folded factor, bias'


def test_independent_of_the_batch(image):
    model = Net()
    one = summarize(model, image)
    for batch in (2, 3, 5):
        many = summarize(model, image.expand(batch, -1, -1, -1))
        assert many.rows == one.rows
        assert many.totals == one.totals


def test_float_model(image):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    summary = summarize(model, image)
    assert summary.totals.ops == summary.totals.flops == 4 * 6 * 10 * 27
    assert (summary.totals.bops, summary.totals.params_binary, summary.binary_share) == (0, 0, 0.0)
    assert (summary.compression, summary.layer_compression) == (1.0, 1.0)
    assert summary.totals.bytes_float == summary.totals.bytes_packed == summary.bytes_file
    assert summary.backend == 'latent'


def test_a_layer_alone():
    summary = summarize(BinaryLinear(64, 8, bias=False, method='binarynet'), torch.randn(5, 64))
    assert [row.name for row in summary.rows] == ['', '(others)']
    assert (summary.totals.bops, summary.totals.bytes_packed, summary.totals.params_float) == (512, 64, 0)


def test_model_without_layers():
    summary = summarize(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), torch.randn(1, 3, 4, 4))
    assert (summary.totals.macs, summary.binary_share, summary.totals.params_float) == (0, 0.0, 13)


def test_shared_layers():
    """Counted once for each call; its numbers are one layer's, its bytes are in the file once."""
    conv = BinaryConv2d(32, 32, 1, bias=False, method='binarynet')
    shared = nn.Sequential(conv, nn.Sequential(conv), nn.BatchNorm2d(32))
    summary = summarize(shared, torch.randn(1, 32, 4, 4))
    row, others = summary.rows
    assert (row.name, row.params_binary, row.bops) == ('0', 1024, 2 * 16 * 1024)
    assert row.bytes_packed == 4 * 32
    assert others.params_float == 4 * 32 + 1, 'the second name is no float parameter'
    packed = pack_(shared)
    once = {tensor.data_ptr(): tensor.nbytes for tensor in packed.state_dict().values()}
    assert summary.totals.bytes_packed == sum(once.values())
    assert summary.bytes_file == len(serialize(packed))


def test_keyword_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = BinaryConv2d(8, 8, 1, bias=False, method='xnor')

        def forward(self, *, sample, timestep):
            return self.layer(input=sample) * timestep

    summary = summarize(Net(), dict(timestep=3, sample=torch.randn(2, 8, 4, 4)))
    assert (summary.rows[0].bops, summary.rows[0].output) == (16 * 64, '8x4x4')


def test_a_model_whose_train_returns_nothing():
    class Distiller(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    summary = summarize(Distiller(BinaryConv2d(8, 8, 1, bias=False, method='xnor')), torch.randn(2, 8, 4, 4))
    assert summary.rows[0].bops == 16 * 64


def test_transposed_convolutions():
    """Each input value meets (out / groups) * kernel weights, whatever the stride, padding and output padding do."""
    for kwargs in (dict(stride=3), dict(stride=2, padding=1, output_padding=1), dict(groups=2), dict(dilation=2)):
        layer = nn.ConvTranspose2d(4, 6, (2, 3), **kwargs)
        summary = summarize(nn.Sequential(layer), torch.randn(2, 4, 5, 7))
        assert summary.totals.flops == 4 * 5 * 7 * 6 // kwargs.get('groups', 1) * 6
        assert summary.totals.params_float == sum(p.numel() for p in layer.parameters())


def test_features_before_the_channels():
    """A linear layer on every position counts each of them."""
    assert summarize(BinaryLinear(8, 4), torch.randn(2, 5, 7, 8)).totals.bops == 5 * 7 * 8 * 4


@pytest.mark.parametrize('fails', [False, True])
@pytest.mark.parametrize('training', [True, False])
def test_the_model_stays_as_it_is(training, fails, image):
    model = Net().train(training)
    model.norm.train(not training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    if fails:
        with pytest.raises(RuntimeError):
            summarize(model, image[:, :2])
    else:
        summarize(model, image)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert isinstance(model.plain, BinaryConv2d)
    assert not any(module._forward_hooks for module in model.modules())


def test_several_inputs():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = BinaryLinear(8, 4)

        def forward(self, flag, x, samples):
            assert flag
            assert samples == ['a', 'b']
            return self.lin(x)

    assert summarize(Sum(), (True, torch.randn(2, 8), ['a', 'b'])).totals.bops == 32


def test_inputs_without_a_tensor():
    """A list of images, as some models take: it counts as one image."""
    class Stack(nn.Sequential):
        def forward(self, images):
            return super().forward(torch.stack(images))

    assert summarize(Stack(BinaryLinear(8, 4)), ([torch.randn(8)],)).totals.bops == 32


def test_backend(image):
    assert summarize(Net(), image).backend == 'latent'
    packed = pack_(Net())
    with bnn_kernels.set_backend('reference'):
        assert summarize(packed, image).backend == 'reference'


class TestCsv:
    def test_it_comes_back(self, image, tmp_path):
        summary = summarize(Net(), image)
        path = summary.to_csv(tmp_path / 'new' / 'folder' / 'summary.csv')
        with path.open(newline='') as file:
            lines = list(csv.DictReader(file))
        assert len(lines) == len(summary.rows) + 1
        for line, row in zip(lines, [*summary.rows, summary.totals], strict=True):
            assert line == {key: str(value) for key, value in vars(row).items()}
        *rows, totals = lines
        assert totals['name'] == 'total'
        for column in SUMS:
            assert float(totals[column]) == sum(float(row[column]) for row in rows), column

    def test_path_as_text(self, image, tmp_path):
        assert summarize(Net(), image).to_csv(str(tmp_path / 'a.csv')) == tmp_path / 'a.csv'


class TestTable:
    @pytest.fixture
    def text(self, image):
        console = Console(width=200, file=io.StringIO())
        console.print(summarize(Net(), image))
        return console.file.getvalue()

    def test_rows(self, text):
        lines = {line.split()[0]: line.split() for line in text.splitlines() if line.split()}
        for name in EXPECTED:
            assert lines[name][1] == type(getattr(Net(), name)).__name__
        assert lines['wide'][2:6] == ['2x3', '8x4x6', '128', '9']
        assert lines['plain'][6:9] == ['0.03', '0.00', '0.00'], 'BOPs, FLOPs, OPs in millions'
        assert lines['stem'][6:9] == ['0.00', '0.01', '0.01']
        assert lines['total'][1] == 'Net'
        assert text.index('BOPs (M)') < text.index('stem') < text.index('(others)') < text.index('total')

    def test_caption(self, text):
        words = ' '.join(text.split())
        assert 'OPs = FLOPs + BOPs / 64, per image' in words
        assert 'Ran: latent' in words
        share = summarize(Net(), torch.randn(1, 3, 8, 12)).binary_share
        assert f'{share:.1%} of the multiply-accumulates are binary' in words

    @pytest.mark.parametrize(('count', 'text'), [(0, '0 B'), (1023, '1023 B'), (1024, '1.0 KiB'), (1536, '1.5 KiB'),
                                                 (2**20, '1.0 MiB'), (3 * 2**30, '3.0 GiB'), (2**43, '8192.0 GiB')])
    def test_size(self, count, text):
        assert size(count) == text


class Classifier(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.fc = backbone, nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(self.backbone(x)[-1].mean((2, 3)))


class TestPublishedFigures:
    """One image of 224 x 224 pixels and 1000 classes, as in the tables of the papers."""

    @pytest.mark.parametrize('method', ['bireal', 'reactnet'])
    def test_bireal_and_reactnet_18(self, method):
        """1.63e8 (Liu et al. 2018 and 2020), 1.64e8 counted exactly; BOPs 1.68e9, FLOPs 1.38e8."""
        backbones = pytest.importorskip('bnn_plugins.models.backbones')
        totals = summarize(Classifier(backbones.BNNResNet(18, method=method)), torch.randn(1, 3, 224, 224)).totals
        assert totals.ops == pytest.approx(1.64e8, rel=0.01)
        stem, shortcuts = 112 * 112 * 64 * 147, 3 * 28 * 28 * 64 * 128  # half the pixels a side, twice the channels, thrice
        assert totals.flops == stem + shortcuts + 512_000
        stage = 56 * 56 * 64 * 64 * 9
        assert totals.bops == 4 * stage + 3 * (stage // 2 + 3 * stage)
        assert totals.params_binary == 9 * (4 * 64**2 + sum(3 * (c * c) + c * c // 2 for c in (128, 256, 512)))

    def test_resnet_18(self):
        """1.81e9 real operations, 11.7 million parameters (He et al. 2016)."""
        backbones = pytest.importorskip('mmdet.models.backbones')
        model = Classifier(backbones.ResNet(18))
        totals = summarize(model, torch.randn(1, 3, 224, 224)).totals
        assert totals.ops == totals.flops == pytest.approx(1.81e9, rel=0.01)
        assert totals.params_float == sum(t.numel() for t in model.state_dict().values())
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(11.69e6, rel=0.01)


class TestExpansion:
    """The same weights and operations as the base layer; norms, activations and memory tau * groups times larger."""

    @staticmethod
    def unit(expand, method='reactnet'):
        c, o = expanded_width(64, expand), expanded_width(128, expand)
        return nn.Sequential(BinaryConv2d(c, o, 3, padding=1, bias=False, method=method, expand=expand), nn.BatchNorm2d(o),
                             RPReLU(o)), torch.randn(1, c, 6, 5)

    @pytest.mark.parametrize(('expand', 'factor'), [(dict(tau=2), 2), (dict(tau=4, style='rep'), 4),
                                                    (dict(tau=2, groups=2), 4), (dict(tau=1, groups=4), 4)], ids=str)
    @pytest.mark.parametrize('packed', [False, True])
    def test_unit(self, expand, factor, packed):
        base, wide = (summarize(pack_(model) if packed else model, x) for model, x in (self.unit(None), self.unit(expand)))
        for name in ('macs', 'bops', 'ops', 'flops', 'params_binary'):
            assert getattr(wide.totals, name) == getattr(base.totals, name), name
        assert base.totals.bops == 30 * 128 * 64 * 9
        for name in ('muls', 'bytes_in', 'bytes_out'):
            assert getattr(wide.totals, name) == factor * getattr(base.totals, name), name
        assert base.totals.muls == 2 * 128 * 30, 'norm and RPReLU; the norm takes over the scale'
        assert base.totals.bytes_in == 64 * 30 // 8
        assert base.totals.bytes_out == 4 * 128 * 30
        assert rows_of(wide)['0'].params_float == factor * 64 + 128 * len(self.unit(expand)[0][0].weight) // 128

    def test_drop_in(self):
        """Outer widths stay; the layer's own sign sees the copies."""
        layer = BinaryConv2d(64, 128, 3, padding=1, bias=False, method='reactnet', expand=dict(tau=2, style='drop_in'))
        row = summarize(layer, torch.randn(1, 64, 6, 5)).rows[0]
        assert (row.bops, row.params_binary) == (30 * 128 * 64 * 9, 128 * 64 * 9)
        assert (row.bytes_in, row.bytes_out) == (2 * 64 * 30 // 8, 4 * 128 * 30)
        assert row.muls == 64 * 30, 'scale of the 64 distinct maps: no norm'

    def test_real_layers(self):
        for expand in (None, dict(tau=2), dict(tau=2, groups=2)):
            width = expanded_width(64, expand)
            rows = rows_of(summarize(SqueezeExcite(width, 8, expand), torch.randn(1, width, 3, 3)))
            assert [rows[name].flops for name in ('squeeze', 'excite')] == [512, 512]
            assert rows['squeeze'].params_float == 512 + width // 8

    @pytest.mark.parametrize(('tau', 'millions'), [(1, 9.28), (2, 18.6)])
    def test_reactnet_a(self, tau, millions):
        """Multiplies of norms and PReLUs that the literature leaves out, at a seventh of the side of 224.

        The derived figures leave out the norm of the stem, which is not widened.
        """
        summary = summarize(BNNReActNet(expand=dict(tau=tau, style='rep')), torch.randn(1, 3, 32, 32))
        assert 49 * (summary.totals.muls - 32 * 16**2) == pytest.approx(millions * 1e6, rel=2e-3)


def test_muls_by_hand():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = BinaryConv2d(4, 6, 1, method='real2binary')
            self.scaled = BinaryConv2d(6, 6, 1, method='bireal')
            self.normed = BinaryConv2d(6, 6, 1, method='bireal')
            self.norm, self.group = nn.BatchNorm2d(6), nn.GroupNorm(2, 6)
            self.plain, self.act = BinaryConv2d(6, 6, 1, method='binarynet'), nn.PReLU()

        def forward(self, x):
            x = self.scaled(self.gain(x))
            x = self.norm(self.normed(x)) + x
            return self.act(self.plain(self.group(x)))

    rows = rows_of(summarize(Part(), torch.randn(2, 4, 3, 5)))
    n = 6 * 15
    assert {name: rows[name].muls for name in ('gain', 'scaled', 'normed', 'plain', '(others)')} == dict(
        gain=n, scaled=n, normed=0, plain=0, **{'(others)': 3 * n})


def test_first_of_two_steps_is_counted_as_real_weights():
    model = nn.Sequential(BinaryConv2d(8, 4, 1, bias=False, method=dict(type='reactnet', binarize_weights=False)))
    row = summarize(model, torch.randn(1, 8, 3, 3)).rows[0]
    assert (row.bits, row.flops, row.bops, row.params_binary) == ('32x1', 9 * 32, 0, 0)
