"""Real layers in int8: the reference against float64 and numpy, every instruction set of the engine against the reference."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import checks
from bnn_kernels.epilogue import ACTS, Epilogue
from bnn_kernels.geometry import Int8Conv2dGeometry
from bnn_kernels.reference import Reference

from . import cases

pytestmark = pytest.mark.sanitize
REFERENCE = Reference()
CHANNELS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 63, 64, 65, 96, 129]))
OUTPUTS = st.one_of(st.integers(1, 20), st.sampled_from([16, 17, 32, 63, 64, 65]))
KINDS = st.sampled_from([torch.uint8, torch.int8])


def drawn(random: np.random.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Any values, or those that a kernel with too small an intermediate result cuts off: only the ends, only one of them."""
    ends = torch.iinfo(dtype)
    known = random.choice([[ends.min, ends.max], [ends.min, ends.min], [ends.max, ends.max]])
    values = random.choice(known, shape) if random.random() < 0.3 else random.integers(ends.min, ends.max + 1, shape)
    return torch.from_numpy(np.asarray(values)).to(dtype)


@st.composite
def convolutions(draw, channels=CHANNELS, outputs=OUTPUTS, image=10, transposed=False):
    """Arguments of int8_conv2d."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, per_group, own = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(channels), draw(outputs)
    if draw(st.sampled_from([0, 0, 0, 0, 1])):  # depthwise
        groups, per_group, own = draw(channels), 1, draw(st.sampled_from([1, 1, 1, 2]))
    kernel, stride, dilation, padding = draw(cases.pairs(1, 4)), draw(cases.pairs(1, 3)), draw(cases.pairs(1, 3)), (0, 0)
    output_padding = None
    if transposed:
        steps = zip(stride, dilation, strict=True)
        output_padding, least = tuple(draw(st.integers(0, max(step) - 1)) for step in steps), [1, 1]
    else:
        padding = draw(cases.pairs(0, 3))
        least = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [side + draw(st.integers(0, image)) for side in least]
    geometry = Int8Conv2dGeometry.of((groups * own, per_group, *kernel), stride, padding, dilation, groups, output_padding)
    if transposed:
        padding = tuple(draw(st.integers(0, min(3, (side - 1) // 2))) for side in geometry.size(size))
        geometry = geometry._replace(padding=padding)
    kind = draw(KINDS)
    x = drawn(random, kind, draw(st.integers(0, 2)), geometry.channels, *size)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    weight = drawn(random, torch.int8, *geometry.w_shape)
    width = geometry.outputs * draw(st.sampled_from([1, 1, 1, 2]))
    # Scales that bring sums near 1, so that eight bits are cut off now and then, and not always.
    typical = 80.0 * 80.0 * np.sqrt(geometry.terms)

    def vector(*shape):
        values = random.normal(size=shape or width).astype(np.float32)
        return torch.from_numpy(np.where(random.random(values.shape) < 0.05, np.float32(0), values))

    act = draw(st.sampled_from(ACTS))
    prelu = act == 'prelu'
    epilogue = Epilogue(vector() / typical, vector(), act, vector() if prelu and draw(st.booleans()) else None,
                        vector() if prelu else None, vector() if prelu and draw(st.booleans()) else None,
                        vector() if draw(st.booleans()) else None,
                        draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0])))
    dtype = draw(st.sampled_from([*cases.STREAMS, torch.uint8, torch.int8]))
    coded = dtype in checks.BYTES
    shortcut = None
    if draw(st.booleans()):
        shortcut = vector(len(x), width, *geometry.size(size)).to(draw(st.sampled_from(cases.STREAMS)))
    pack, keep = draw(st.sampled_from([(True, True), (False, True), (True, False)]))
    return dict(x=x, x_zero=drawn(random, kind, draw(st.sampled_from([1, geometry.channels]))), weight=weight,
                geometry=geometry, epilogue=epilogue, shortcut=shortcut,
                out_scale=torch.from_numpy(random.uniform(0.001, 0.05, 1).astype(np.float32)) if coded else None,
                out_zero=drawn(random, dtype, 1) if coded else None, dtype=dtype, pack=pack, keep=keep)


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
    q = bk.quantize(x, scale, zero)
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
