"""Fused and packed models where hosts are particular: types and strides of outputs, tracing, memory formats, copies."""

import collections
import copy
import dataclasses

import pytest
import torch
from torch import nn

from bnn_plugins import fuse_, pack_
from bnn_plugins.layers import BinaryConv2d, BinaryLinear

from .fuse_nets import exact_image, make_exact_
from .nets import same as equal


def blocks(channels=16, **options):
    convs = [BinaryConv2d(channels, channels, 3, padding=1, **options) for _ in range(2)]
    return nn.Sequential(convs[0], nn.BatchNorm2d(channels), convs[1], nn.BatchNorm2d(channels)).eval()


@dataclasses.dataclass
class Output(collections.OrderedDict):
    """As those of diffusers and transformers: a dict whose entries are also attributes."""

    sample: torch.Tensor
    more: tuple | None = None

    def __post_init__(self):
        self['sample'] = self.sample


Pair = collections.namedtuple('Pair', 'one two')
OUTPUTS = {
    'dataclass': lambda x: Output(sample=x),
    'dataclass of several': lambda x: Output(x, (x * 2, x + 1)),
    'ordered dict': lambda x: collections.OrderedDict(b=x, a=x + 1),
    'dict': lambda x: dict(b=x, a=[x, (x,)]),
    'named tuple': lambda x: Pair(x, x + 1),
    'nested': lambda x: [Output(x), dict(out=Output(x + 1))],
}


class Returning(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make, self.body = make, blocks()

    def forward(self, x):
        return self.make(self.body(x) + x)


def parts(value):
    """Types and tensors, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [type(value), *parts([getattr(value, field.name) for field in dataclasses.fields(value)])]
    if isinstance(value, dict):
        return [type(value), list(value), *parts(list(value.values()))]
    return [type(value), *(part for item in value for part in parts(item))] if isinstance(value, list | tuple) else [value]


def check_same(found, expected):
    """Types, values and strides."""
    found, expected = parts(found), parts(expected)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, torch.Tensor):
            assert torch.equal(one, other)
            assert one.stride() == other.stride(), 'a host may call view'
        else:
            assert one == other


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('make', OUTPUTS)
def test_outputs_are_of_the_same_types_and_strides(make, memory_format):
    model, x = make_exact_(pack_(Returning(OUTPUTS[make]).eval())), exact_image(2, 16, 6, 7).to(memory_format=memory_format)
    with torch.no_grad():
        expected = model(x)
        assert fuse_(model).parts.keys() == {''}
        for _ in range(2):
            check_same(model(x), expected)


class Viewing(nn.Module):
    """``view`` of results, in the graph and in a module that is a host's own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.pool = blocks(), blocks(), Pool()

    def forward(self, x):
        x = self.first(x)
        y = self.second(x)
        scores = (y + 1).view(len(y), -1)
        return scores, self.pool(x), y.flatten(2)


class Pool(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.view(x.size(0), -1).amax(1) * self.weight


def test_views_of_results():
    model, x = make_exact_(pack_(Viewing().eval())), exact_image(2, 16, 6, 7)
    with torch.no_grad():
        expected = model(x)
        fuse_(model)
        assert equal(model(x), expected)


@pytest.mark.parametrize('fused', [False, True])
def test_jit_trace(fused):
    """The operators are in the traced graph: not the memory of one result."""
    model = nn.Sequential(blocks(), nn.Flatten(), BinaryLinear(16 * 36, 5, method='bireal'))
    model = make_exact_(pack_(model.eval()))
    if fused:
        fuse_(model)
    with torch.no_grad():
        traced = torch.jit.trace(model, exact_image(2, 16, 6, 6))
        for _ in range(2):
            x = exact_image(2, 16, 6, 6)
            assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('method', ['bireal', dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
def test_to_channels_last(method, fused):
    model = make_exact_(pack_(nn.Sequential(nn.Conv2d(3, 16, 3), blocks(method=method)).eval()))
    x = exact_image(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        if fused:
            fuse_(model)
        model.to(memory_format=torch.channels_last)
        assert torch.equal(model(x.to(memory_format=torch.channels_last)), expected)
    assert model[1][0].weight_bits.is_contiguous()


def test_moving_where_nothing_changes_keeps_the_bits():
    model = pack_(blocks())
    before = model[0].weight_bits
    assert model.float()[0].weight_bits is before
    assert model.to('cpu')[0].weight_bits is before


def test_a_copy_in_double_precision():
    model, x = make_exact_(pack_(blocks())), exact_image(2, 16, 6, 7)
    fuse_(model)
    with torch.no_grad():
        found = copy.deepcopy(model).double()(x.double())
        assert found.dtype == torch.float64
        assert torch.equal(found.float(), model(x))
