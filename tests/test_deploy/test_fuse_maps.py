"""Maps between convolutions: pooling, enlargement, folding and the formats of results, in the one call of a network."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnn_kernels
from bnn_plugins import fuse_, pack_, quantize_rest_, verify
from bnn_plugins.deploy import fused_parts
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU
from bnn_plugins.layers.expand import mean_over

from .nets import randomise_

pytestmark = pytest.mark.skipif(bnn_kernels.available_backends()['cpu'] != 'available', reason='the CPU engine is not there')


@pytest.fixture(autouse=True)
def without_gradients():
    """With them a fused model runs unfused."""
    with torch.no_grad():
        yield


class Pyramid(nn.Module):
    """A stem, a block with a real shortcut, a lateral convolution, a top-down path, a head of levels, a pooled exit."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.norm = nn.Conv2d(3, 16, 7, 2, 3), nn.MaxPool2d(3, 2, 1), nn.BatchNorm2d(16)
        self.act = nn.PReLU(16)
        self.block, self.block_norm = BinaryConv2d(16, 32, 3, 2, 1, bias=False, method='bireal'), nn.BatchNorm2d(32)
        self.down = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), nn.Conv2d(16, 32, 1),
                                  nn.BatchNorm2d(32))
        self.lateral, self.lateral_norm = BinaryConv2d(32, 16, 1, bias=False, method='bireal'), nn.BatchNorm2d(16)
        self.out = BinaryConv2d(16, 16, 3, padding=1, method='bireal')
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 9, 3, padding=1))
        self.other = nn.Conv2d(16, 5, 3, padding=1)
        self.whole = nn.AdaptiveAvgPool2d(1)

    def forward(self, x):
        x = self.act(self.norm(self.pool(self.conv(x))))
        y = self.block_norm(self.block(x)) + self.down(x)
        low = self.lateral_norm(self.lateral(y)) + mean_over(y.unflatten(1, (-1, 16)), 1, 2)
        high = x + F.interpolate(low, size=x.shape[2:], mode='nearest')
        high = self.out(high) + high
        levels = high, F.avg_pool2d(low, 2, 2), F.interpolate(low, scale_factor=2.0)
        return [self.head(level) for level in levels], [self.other(level) for level in levels], self.whole(y)


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    first, second, third = model(x)
    return [*first, *second, third]


@pytest.mark.parametrize('rest', ['float32', 'int8'])
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('size', [(64, 64), (50, 75)])
def test_one_program_computes_what_the_modules_compute(rest, memory, size):
    """Mutations: the shortcut of an enlargement left out; max for mean; a step that returns its input counted as a call."""
    torch.manual_seed(0)
    latent = randomise_(Pyramid()).eval()
    packed, x = pack_(copy.deepcopy(latent)), torch.randn(2, 3, *size).contiguous(memory_format=memory)
    if rest == 'int8':
        quantize_rest_(packed, [x])
    expected = results(packed, x)
    fuse_(packed)
    for _ in range(2):  # the first call runs step by step, the second as one
        found = results(packed, x)
        for one, other in zip(found, expected, strict=True):
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            assert one.stride() == other.stride() or one.shape[2:] == (1, 1)
            assert float((one - other).norm() / other.norm()) < 0.02, 'but for a sign or a step of eight bits'
    assert verify(latent, packed, x).ok
    (_, part), = fused_parts(packed)
    program = part.plan.program
    if rest == 'int8':
        assert len(program.calls) == 1, program
        assert any('bytes of head.0' in record.target for record in program.records)
        assert not any('bytes of other' in record.target for record in program.records), 'heads store their input in one way'
    else:
        assert {record.kind for record in program.records} == {'step'}, program


def test_layers_that_share_their_input_come_apart_when_they_are_loaded():
    """One quantization stands for two layers as long as their scales are equal: another state dict is traced anew."""
    torch.manual_seed(0)
    packed, x = pack_(randomise_(Pyramid()).eval()), torch.randn(1, 3, 64, 64)
    quantize_rest_(packed, [x])
    fuse_(packed)
    before = results(packed, x)
    state = copy.deepcopy(packed.state_dict())
    state['other.input_scale'] *= 2
    state['other.scale'] *= 2
    packed.load_state_dict(state)
    after = results(packed, x)
    assert all(torch.equal(one, other) for one, other in zip(after[:3], before[:3], strict=True))
    assert not torch.equal(after[3], before[3])
    assert float((after[3] - before[3]).norm() / before[3].norm()) < 0.1


class Branches(nn.Module):
    """Two blocks side by side with one non-linearity behind them, a level of another size, sums, layers that read them."""

    def __init__(self, act: nn.Module):
        super().__init__()
        self.one, self.two = (BinaryConv2d(8, width, 3, padding=1, bias=False, method='bireal') for width in (8, 16))
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(16)])
        self.act, self.up = act, nn.Upsample(scale_factor=2, mode='nearest')
        self.low = BinaryConv2d(8, 24, 3, 2, 1, method='bireal')
        self.three = BinaryConv2d(48, 24, 3, padding=1, groups=2, method='reactnet')
        self.four = nn.Sequential(BinaryConv2d(24, 24, 1, method='bireal'), nn.SiLU())

    def forward(self, x):
        y = self.act(torch.cat([self.norms[0](self.one(x)), self.norms[1](self.two(x))], 1))
        y = self.four(y) + y
        y = y + y
        z = torch.cat((self.up(self.low(x)), y), dim=1)
        return self.three(z), y


@pytest.mark.parametrize('stream', [None, torch.bfloat16])
@pytest.mark.parametrize('act', [RPReLU(24), nn.PReLU(24), nn.PReLU(), nn.ReLU(), nn.SiLU(), nn.Identity(), nn.GELU()])
def test_maps_side_by_side(act, stream):
    """Mutations: the second block takes the first channels of the non-linearity; the expected channels of its check; the map
    kept where only signs are read; groups of the reader left out; a value that a step reads twice given once."""
    torch.manual_seed(0)
    latent = randomise_(Branches(act)).eval()
    packed, x = pack_(copy.deepcopy(latent)), torch.randn(2, 8, 6, 10)
    expected = packed(x)
    fuse_(packed, stream_dtype=stream)
    for _ in range(3):
        for one, other in zip(packed(x), expected, strict=True):
            assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
            assert float((one - other).norm() / other.norm()) < (0.02 if stream is None else 0.2)
    report = verify(latent, packed, x)
    assert report.ok or stream is not None, report
    (_, part), = fused_parts(packed)
    steps = part.plan.steps.values()
    concats = [step for step in steps if step.text == 'maps side by side']
    known = not isinstance(act, nn.GELU)
    assert [(step.pack, step.keep) for step in concats] == [(known, True), (True, False)]
    if known and stream is None:
        assert len(part.plan.program.calls) == 1, part.plan.program


def test_maps_of_other_dtypes_and_tokens_are_left_to_torch():
    """A step that cannot join others would hold them back: tokens are no images. Mutation: any sum is taken for one."""
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = BinaryLinear(8, 8, method='bireal')

        def forward(self, x):
            y = self.linear(x)
            return torch.cat([y, x], 1), y + x

    torch.manual_seed(0)
    model, x = pack_(Tokens()), torch.randn(2, 5, 8)
    expected = model(x)
    fuse_(model)
    (_, part), = fused_parts(model)
    assert not any(type(step).__name__ in ('ConcatStep', 'PoolStep') for step in part.plan.steps.values())
    assert all(torch.equal(one, other) for one, other in zip(model(x), expected, strict=True))


class Separable(nn.Module):
    """A real depthwise convolution and its norm in a module of their own, beside nothing that is packed."""

    class Depthwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.SiLU()

        def forward(self, x):
            return self.act(self.norm(self.conv(x)))

    def __init__(self):
        super().__init__()
        self.binary, self.real = BinaryConv2d(8, 8, 3, padding=1, method='bireal'), self.Depthwise()

    def forward(self, x):
        return self.real(self.binary(x))


@pytest.mark.parametrize(('rest', 'step'), [('float32', 'ConvStep'), ('int8', 'LastLink')])
def test_norms_of_real_layers_in_modules_of_their_own_are_folded(rest, step):
    """Mutation: a module without packed layers is one call."""
    torch.manual_seed(0)
    latent, x = randomise_(Separable()).eval(), torch.randn(1, 8, 6, 6)
    packed = pack_(copy.deepcopy(latent))
    if rest == 'int8':
        quantize_rest_(packed, [x])
    expected = packed(x)
    fuse_(packed)
    torch.testing.assert_close(packed(x), expected)
    (_, part), = fused_parts(packed)
    assert step in [type(step).__name__ for step in part.plan.steps.values()]
    assert not any(record.kind == 'module' for record in part.plan.program.records)
    assert verify(latent, packed, x).ok


class Odd(nn.Module):
    """What is no window of pool2d, or no sum of it."""

    def __init__(self):
        super().__init__()
        self.binary = BinaryConv2d(8, 8, 3, padding=1, method='bireal')
        self.pools = nn.ModuleList([nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(3, 1, 1), nn.AvgPool2d(2, divisor_override=3),
                                    nn.AdaptiveAvgPool2d((None, 2)), nn.Upsample(scale_factor=2)])

    def forward(self, x):
        x = self.binary(x)
        y = F.interpolate(x, size=(7, 7), mode='bilinear')
        size = x.shape[2:]
        z = F.interpolate(y, size=size, mode='nearest')
        return [pool(x) for pool in self.pools], x + z, F.interpolate(x, scale_factor=1.5), (x + x) / 2, z.shape[2:]


def test_what_is_no_window_stays_as_it_is():
    torch.manual_seed(0)
    model, x = pack_(Odd()), torch.randn(1, 8, 6, 6)
    (pools, *expected), (fused_pools, *found) = model(x), (fuse_(model), model(x))[1]
    assert all(torch.equal(one, other) for one, other in zip(fused_pools, pools, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(found[:3], expected[:3], strict=True))
    assert found[3] == expected[3]


class Exits(nn.Module):
    """Results behind a real layer: their steps follow each other, and none does anything where images are channels-last."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (BinaryConv2d(8, 8, 3, padding=1, method='bireal') for _ in range(2))
        self.real = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        real = self.real(one)
        return one, two, real


@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
def test_steps_that_all_return_what_they_are_given(memory):
    """Mutation: no look for them, with which the call raised "not enough values to unpack"."""
    torch.manual_seed(0)
    model, x = pack_(Exits()), torch.randn(1, 8, 6, 6).contiguous(memory_format=memory)
    expected, found = model(x), (fuse_(model), model(x), model(x))[2]
    assert all(torch.equal(one, other) and one.stride() == other.stride() for one, other in zip(found, expected, strict=True))
