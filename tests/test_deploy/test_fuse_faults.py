"""Fused and packed models where hosts are particular: types and strides of outputs, tracing, memory formats, copies."""

import collections
import copy
import dataclasses
import warnings

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


class Asking(nn.Module):
    """What it computes depends on its arguments: their kinds, dimensions and sizes, and options."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.body = 16, blocks()

    def forward(self, x, time, context=None, double=False, **more):
        if not torch.is_tensor(time):
            time = torch.tensor([time], dtype=x.dtype)
        elif len(time.shape) == 0:
            time = time[None]
        y = self.body(x) + time.expand(x.shape[0]).view(-1, 1, 1, 1) * x.shape[1]
        if context is not None:
            y = y + (context if context.dim() == 4 else context[:, :, None, None])
        return (y, y) if double else y


def test_a_program_for_each_kind_of_call():
    model, x = make_exact_(pack_(Asking().eval())), exact_image(2, 16, 6, 7)
    four, two = exact_image(2, 16, 6, 7), exact_image(2, 16)
    calls = [((x, 3), {}), ((x, 5.0), {}), ((x, torch.tensor(3.0)), {}), ((x, torch.tensor([3.0, 4.0])), {}),
             ((x, 3, four), {}), ((x, 3), dict(context=two)), ((x, torch.tensor([3.0])), dict(context=four, double=True)),
             ((x,), dict(time=2, context=None, double=False)), ((x, 4), {})]
    with torch.no_grad():
        expected = [model(*args, **more) for args, more in calls]
        assert fuse_(model).parts.keys() == {''}
        for _ in range(2):
            for (args, more), values in zip(calls, expected, strict=True):
                check_same(model(*args, **more), values)
    kinds = [entry.plan for entry in vars(model)['forward'].entries.values()]
    assert len(set(kinds)) == 6, 'calls with other numbers share a program, and so do those that leave out what is the default'


def test_calls_that_no_program_takes_run_unfused_and_say_so_once():
    model, x = make_exact_(pack_(Asking().eval())), exact_image(2, 16, 6, 7)
    with torch.no_grad():
        expected = model(x, 3, unknown={})
        fuse_(model)
        with pytest.warns(UserWarning, match='fused Asking is called with more, but was traced without: it runs unfused'):
            assert torch.equal(model(x, 3, unknown={}), expected)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert torch.equal(model(x, 3, unknown={}), expected)


class Sized(nn.Module):
    """Says that it has 12 channels, and takes others."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.body = 12, blocks()

    def forward(self, x):
        return self.body(torch.cat((x, x[:, :4]), 1) if x.shape[1] == 12 else x)


def test_channels_are_taken_for_granted_only_where_they_are_so():
    model = make_exact_(pack_(Sized().eval()))
    images = exact_image(2, 12, 6, 7), exact_image(2, 16, 6, 7)
    with torch.no_grad():
        expected = [model(x) for x in images]
        assert fuse_(model).parts.keys() == {''}
        assert torch.equal(model(images[0]), expected[0])
        with pytest.warns(UserWarning, match='other channels than it says'):
            assert torch.equal(model(images[1]), expected[1])


def test_a_program_is_printed():
    model = pack_(blocks())
    fuse_(model)
    text = str(vars(model)['forward'].plan.program)
    assert text.splitlines()[0] == 'inputs v0'
    assert 'v1 = step 0 signs of 0(v0)' in text
    assert text.splitlines()[-1] == 'returns v4'
