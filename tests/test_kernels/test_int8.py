"""Real layers in int8: the reference against float64 and numpy, every instruction set of the engine against the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels.cpu import engine
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.epilogue import Epilogue, silu
from bnn_kernels.reference import Reference

from . import cases
from .int8_cases import KINDS, convolutions, drawn

pytestmark = pytest.mark.sanitize
CPU, REFERENCE = Cpu(), Reference()
ISAS = engine.available_isas() if bk.available_backends()['cpu'] == 'available' else []
def sums(call: dict) -> torch.Tensor:
    """The accumulators in float64, from torch's own convolutions."""
    x, weight = call['x'].double() - call['x_zero'].double().view(-1, 1, 1), call['weight'].double()
    geometry = call['geometry']
    stride, padding, dilation, groups = geometry.stride, geometry.padding, geometry.dilation, geometry.groups
    if geometry.transposed:
        swapped = bk.transpose_weight(weight, groups)
        return F.conv_transpose2d(x, swapped, None, stride, padding, geometry.output_padding, groups, dilation)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups)


def by_numpy(call: dict) -> np.ndarray:
    """v of the formula in int8_reference.py, one float32 operation after the other."""
    epilogue = call['epilogue']
    image = {name: None if vector is None else vector.numpy().reshape(-1, 1, 1) for name, vector in epilogue.vectors().items()}
    v = sums(call).repeat(1, epilogue.width // call['geometry'].outputs, 1, 1).numpy().astype(np.int32).astype(np.float32)
    v = v * image['scale'] + image['bias']
    if call['shortcut'] is not None:
        v = v + call['shortcut'].float().numpy()
    if epilogue.act == 'prelu':
        v = v if epilogue.gamma is None else v - image['gamma']
        v = np.where(v > 0, v, image['slope'] * v)
        v = v if epilogue.zeta is None else v + image['zeta']
    elif epilogue.act == 'silu':
        v = silu(torch.from_numpy(v)).numpy()
    elif epilogue.act != 'identity':
        v = np.clip(v, *((0, None) if epilogue.act == 'relu' else (-1, 1)))
    assert v.dtype == np.float32
    return v


@cases.examples(400)
@given(call=st.one_of(convolutions(), convolutions(transposed=True, image=6)))
def test_reference(call):
    words, stream = REFERENCE.int8_conv2d(**call)
    v, ends, zero = by_numpy(call), call['dtype'], call['out_zero']
    seen = torch.from_numpy(v)
    if zero is None:
        seen = expected = seen.to(call['dtype'])
    else:
        ends = torch.iinfo(call['dtype'])
        scaled = np.rint(v * (np.float32(1) / call['out_scale'].numpy())) + int(zero)
        expected = torch.from_numpy(scaled.clip(ends.min, ends.max)).to(call['dtype'])
    if call['keep']:
        assert cases.same(stream, expected, torch.channels_last)
    if call['pack']:
        assert torch.equal(words, bk.pack_activations(seen.float(), call['epilogue'].threshold, call['epilogue'].out_groups))


def agree(call: dict) -> bool:
    """Whether every instruction set returns what the reference returns."""
    expected = REFERENCE.int8_conv2d(**call)
    for isa in ISAS:
        with engine.set_isa(isa):
            if not all(map(torch.equal, CPU.int8_conv2d(**call), expected)):
                return False
    return True


# 2 000 cases for each instruction set.

@cases.examples(1400)
@given(call=convolutions())
def test_convolution(call):
    assert agree(call)


@cases.examples(100)
@given(call=convolutions(st.sampled_from([3, 64, 130, 260]), st.sampled_from([16, 33, 129]), image=40))
def test_images_of_several_blocks(call):
    assert agree(call)


@cases.examples(500)
@given(call=convolutions(transposed=True, image=6))
def test_transposed(call):
    assert agree(call)


@cases.examples(100)
@given(shape=st.lists(st.integers(0, 5), max_size=4), kind=KINDS, dtype=st.sampled_from(cases.STREAMS),
       seed=st.integers(0, 2**32 - 1))
def test_quantize(shape, kind, dtype, seed):
    random = np.random.default_rng(seed)
    known = [-np.inf, np.nan, np.inf, -0.0, 0.25, 0.5, 0.75, 1e9, -1e-40, *random.normal(size=9) * 30]
    values = np.asarray(random.choice(known, shape))
    x, scale, zero = torch.from_numpy(values).to(dtype), torch.tensor([0.5]), drawn(random, kind, 1)
    ends = torch.iinfo(kind)
    steps = np.nan_to_num(np.rint(x.double().numpy() * 2) + int(zero), nan=ends.min, posinf=ends.max, neginf=ends.min)
    expected = torch.from_numpy(np.asarray(steps.clip(ends.min, ends.max))).to(kind)
    for backend in (REFERENCE, CPU) if ISAS else (REFERENCE,):
        q = backend.quantize(x, scale, zero)
        assert cases.same(q, expected, torch.channels_last if len(shape) == 4 else torch.contiguous_format)


@cases.examples(60)
@given(lead=st.lists(st.integers(0, 4), max_size=3), call=convolutions(), seed=st.integers(0, 99))
def test_linear(lead, call, seed):
    random, channels = np.random.default_rng(seed), call['geometry'].group_channels
    x, zero = drawn(random, torch.uint8, *lead, channels), drawn(random, torch.uint8, 1)
    weight = call['weight'][..., 0, 0]
    width = len(weight)
    epilogue = Epilogue(torch.ones(width), torch.zeros(width))
    expected = (x.double() - zero.double()) @ weight.double().t()
    assert torch.equal(bk.int8_linear(x, zero, weight, epilogue).double(), expected)
    out = bk.Quantization(torch.tensor([300.0]), torch.tensor([7], dtype=torch.int8))
    coded = bk.int8_linear(x, zero, weight, epilogue, out=out)
    assert torch.equal(coded, bk.quantize(expected.float(), *out))


@pytest.fixture
def call():
    return dict(x=torch.randint(0, 256, (1, 4, 6, 5), dtype=torch.uint8), x_zero=torch.tensor([3], dtype=torch.uint8),
                weight=torch.randint(-128, 128, (6, 2, 3, 3), dtype=torch.int8), stride=[1, 1], padding=[1, 1],
                dilation=[1, 1], groups=2, output_padding=None, **Epilogue(torch.ones(6), torch.zeros(6))._asdict(),
                shortcut=None, out_scale=None, out_zero=None, dtype=torch.float32, pack=True, keep=True)


def run(call: dict) -> tuple[torch.Tensor, torch.Tensor]:
    op = torch.ops.bnn_kernels.int8_conv2d.default
    return op(*(call[argument.name] for argument in op._schema.arguments))


@pytest.mark.compiles
def test_opcheck_and_compile(call):
    coded = dict(out_scale=torch.tensor([0.5]), out_zero=torch.tensor([1], dtype=torch.int8), dtype=torch.int8)
    op = torch.ops.bnn_kernels.int8_conv2d.default
    for case in (call, call | coded | dict(pack=False), call | dict(output_padding=[0, 0])):
        torch.library.opcheck(op, tuple(case[argument.name] for argument in op._schema.arguments))
    torch.library.opcheck(torch.ops.bnn_kernels.quantize.default, (torch.randn(2, 3, 4, 5), torch.ones(1), call['x_zero']))


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(x=torch.ones(4, 6, 5).byte()), ValueError, r'x must be \[N, C, H, W\]'),
    (dict(x=torch.ones(1, 4, 6, 5)), TypeError, 'x must be uint8 or int8'),
    (dict(x=torch.ones(1, 5, 6, 5).byte()), ValueError, 'x has 5 channels, but the weight takes 4'),
    (dict(x_zero=torch.ones(3).byte()), ValueError, 'x_zero must have one element or one per channel'),
    (dict(x_zero=torch.ones(1)), TypeError, 'x_zero must be torch.uint8'),
    (dict(weight=torch.ones(6, 2, 3, 3)), TypeError, 'weight must be torch.int8'),
    (dict(weight=torch.ones(6, 2**15, 3, 3, dtype=torch.int8)), ValueError, r'the limit is 2\*\*16'),
    (dict(weight=torch.ones(6, 2, 3, dtype=torch.int8)), ValueError, r'weight must be \[O, C / groups, kH, kW\]'),
    (dict(padding=[0, 0], x=torch.ones(1, 4, 2, 5).byte()), ValueError, 'the output would be empty'),
    (dict(dtype=torch.float64), TypeError, 'dtype of the stream'),
    (dict(dtype=torch.int8), ValueError, 'needs out_scale and out_zero'),
    (dict(out_scale=torch.ones(1)), ValueError, 'needs out_scale and out_zero'),
    (dict(dtype=torch.int8, out_scale=torch.ones(1), out_zero=torch.ones(1).byte()), TypeError, 'out_zero must be torch.int8'),
    (dict(dtype=torch.int8, out_scale=torch.ones(2), out_zero=torch.ones(1).char()), ValueError, r'out_scale must be \[1\]'),
    (dict(shortcut=torch.ones(1, 6, 6, 6)), ValueError, 'shortcut must have the shape of the output'),
    (dict(pack=False, keep=False), ValueError, 'leave nothing to return'),
    (dict(slope=torch.ones(6)), ValueError, "belong to act='prelu'"),
])
def test_one_sentence_for_bad_input(call, change, error, message):
    with pytest.raises(error, match=message):
        run(call | change)
    with torch.device('meta'), pytest.raises(error, match=message):
        run({name: value.to('meta') if isinstance(value, torch.Tensor) else value for name, value in (call | change).items()})
