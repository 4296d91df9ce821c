"""Random calls of the operators, as keyword arguments of a backend: every backend gets the same kinds of cases."""

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnn_kernels import Epilogue, Recurrence, attention, layout, recurrence
from bnn_kernels.attention import Planes
from bnn_kernels.epilogue import ACTS
from bnn_kernels.geometry import Conv2dGeometry

CHANNELS = st.one_of(st.integers(1, 40), st.sampled_from([31, 32, 33, 63, 64, 65, 96, 128, 129]))
OUTPUTS = st.one_of(st.integers(1, 20), st.sampled_from([15, 16, 17, 32, 63, 64, 65]))
STREAMS = (torch.float32, torch.bfloat16, torch.float16)


def examples(number: int):
    return settings(deadline=None, max_examples=number)


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def flat(call: dict) -> dict:
    """With the fields of objects by their names, as the schema of an operator has them."""
    fields = {}
    for name, value in call.items():
        fields |= value._asdict() if hasattr(value, '_asdict') else {name: value}
    return fields


def words(draw: np.random.Generator, *shape: int, groups: int = 1) -> torch.Tensor:
    """Random signs `[..., C]`, packed: mixed, mostly one sign, or all of one."""
    share = draw.choice([0.0, 0.1, 0.5, 0.5, 0.5, 0.9, 1.0])
    return layout.pack_bits(torch.from_numpy(draw.random(shape) < share), groups)


@st.composite
def convolutions(draw, channels=CHANNELS, outputs=OUTPUTS, image=10, batch=3):
    """Arguments of binary_conv2d; `image`: the largest side."""
    groups, per_group = draw(st.sampled_from([1, 1, 1, 2, 3])), draw(channels)
    kernel, dilation, padding = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(0, 3))
    reach = [max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    height, width = (r + draw(st.integers(0, image)) for r in reach)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    geometry = Conv2dGeometry(per_group * groups, draw(outputs) * groups, kernel, draw(pairs(1, 3)), padding, dilation, groups,
                              draw(st.sampled_from([0, 0, -1, 1])))
    return dict(
        x_words=words(random, draw(st.integers(0, batch)), height, width, geometry.channels, groups=groups),
        w_words=words(random, geometry.outputs, *kernel, per_group), geometry=geometry)


@st.composite
def transposed(draw):
    """Arguments of binary_conv_transpose2d."""
    call = draw(convolutions(image=6))
    geometry = call['geometry']
    steps = zip(geometry.stride, geometry.dilation, strict=True)
    output_padding = tuple(draw(st.integers(0, max(step) - 1)) for step in steps)
    whole = geometry._replace(pad_value=0, padding=(0, 0), output_padding=output_padding)
    padding = tuple(draw(st.integers(0, min(3, (side - 1) // 2))) for side in whole.size(call['x_words'].shape[1:3]))
    return call | dict(geometry=whole._replace(padding=padding))


@st.composite
def signs(draw, conv=None):
    """Arguments of binary_conv2d_sign; thresholds lie where the sums do, and at the ends of int32."""
    call = draw(convolutions() if conv is None else conv)
    width = len(call['w_words']) * draw(st.sampled_from([1, 1, 2]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    near = random.integers(-9, 10, width) * random.integers(1, 4)
    threshold = np.where(random.random(width) < 0.1, random.choice([-2**31, 2**31 - 1], width), near)
    flip = torch.from_numpy(random.random(width) < 0.5) if draw(st.booleans()) else None
    return call | dict(threshold=torch.from_numpy(threshold.astype(np.int32)), flip=flip,
                       out_groups=draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0])))


@st.composite
def blocks(draw, conv=None):
    """Arguments of binary_block2d: parameters whose products and sums round, so that a contracted or reordered one shows."""
    call = draw(convolutions() if conv is None else conv)
    width = len(call['w_words']) * draw(st.sampled_from([1, 1, 1, 2, 4]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def vector(*shape):
        values = random.normal(size=shape or width).astype(np.float32)
        return torch.from_numpy(np.where(random.random(values.shape) < 0.05, np.float32(0), values))

    act, dtype, out = draw(st.sampled_from(ACTS)), draw(st.sampled_from(STREAMS)), None
    slope = vector() if act == 'prelu' else None
    gamma, zeta = (vector() if act == 'prelu' and draw(st.booleans()) else None for _ in range(2))
    batch, _, *size = call['geometry'].shape(call['x_words'].shape)
    shape = (batch, width, *size)
    shortcut = draw(st.sampled_from(['none', 'planar', 'other dtype', 'in place']))
    residual = None
    if shortcut != 'none':
        kind = draw(st.sampled_from(STREAMS)) if shortcut == 'other dtype' else dtype
        residual = vector(*shape).to(kind)
        if shortcut == 'in place':
            residual = out = residual.contiguous(memory_format=torch.channels_last)
    pack, keep = (draw(st.booleans()), True) if out is not None else draw(st.sampled_from([(1, 1), (1, 0), (0, 1)]))
    return call | dict(
        epilogue=Epilogue(vector(), vector(), act, gamma, slope, zeta, vector() if draw(st.booleans()) else None,
                          draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0]))),
        shortcut=residual, dtype=dtype, pack=bool(pack), keep=bool(keep), out=out)


def run_block(backend, call: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Words and stream of a backend's binary_block2d, with its own copy of what is written in place."""
    if call['out'] is not None:
        copy = call['out'].clone(memory_format=torch.preserve_format)
        call = call | dict(out=copy, shortcut=copy)
    return backend.binary_block2d(**call)


def same(result: torch.Tensor, expected: torch.Tensor, memory_format=torch.contiguous_format) -> bool:
    return (result.dtype == expected.dtype and torch.equal(result, expected)
            and result.is_contiguous(memory_format=memory_format))


@st.composite
def downsamples(draw):
    """Arguments of downsample2d."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, channels, outputs, image = draw(st.integers(0, 2)), draw(CHANNELS), draw(OUTPUTS), draw(pairs(1, 15))
    x, weight, bias = (torch.from_numpy(random.normal(size=shape).astype(np.float32))
                       for shape in ((batch, channels, *image), (outputs, channels), outputs))
    return dict(x=x.to(draw(st.sampled_from(STREAMS))), weight=weight, bias=bias, pool=draw(st.integers(1, 5)))


def check_downsample(result: torch.Tensor, call: dict) -> None:
    """Against float64, within what float32 sums in any order may lose, and the rounding of the result."""
    x, weight, bias = (call[name].double() for name in ('x', 'weight', 'bias'))

    def downsample(x, weight, bias):
        pooled = F.avg_pool2d(x, call['pool'], call['pool'], ceil_mode=True, count_include_pad=False)
        return torch.einsum('oc, nchw -> nohw', weight, pooled) + bias[:, None, None]

    exact, sizes = downsample(x, weight, bias), downsample(x.abs(), weight.abs(), bias.abs())
    roundings = weight.shape[1] + call['pool']**2 + 4
    bound = roundings * 2**-24 * sizes + torch.finfo(result.dtype).eps / 2 * exact.abs() * 1.01 + 2**-25
    assert (result.dtype, result.shape) == (call['x'].dtype, exact.shape)
    assert (result.double() - exact).abs().le(bound).all()


# --- sequences -----------------------------------------------------------------------------------------------------------

UNITS = st.one_of(st.integers(1, 20), st.sampled_from([31, 32, 33, 48, 64, 65, 100]))


def floats(random: np.random.Generator, *shape: int) -> torch.Tensor:
    """Normal float32 with some exact zeros."""
    values = random.normal(size=shape).astype(np.float32)
    return torch.from_numpy(np.where(random.random(shape) < 0.05, np.float32(0), values))


@st.composite
def lstms(draw, units=UNITS, steps=5, batch=9, statistics=True):
    """Arguments of binary_lstm: all modes, replicas, lengths beyond both ends, states that are not the first ones."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    outputs, replicas = draw(units), draw(st.sampled_from([1, 1, 4]))
    width, directions = outputs * replicas, draw(st.integers(1, 2))
    steps, batch = draw(st.integers(0, steps)), draw(st.integers(0, batch))
    gates, candidate = draw(st.sampled_from(recurrence.GATES)), draw(st.sampled_from(recurrence.CANDIDATES))
    inputs = draw(st.sampled_from([outputs, width]))
    cell = floats(random, directions, batch, width)
    if gates == 'binary' and candidate == 'sign' and draw(st.booleans()):
        cell = torch.from_numpy(random.choice([-127, -126, -1, 0, 3, 126, 127], cell.shape).astype(np.int8))
    x = floats(random, steps, batch, directions, 4 * inputs)
    scale_x, bias = (floats(random, directions, 4 * width) if draw(st.booleans()) else None for _ in range(2))
    return dict(
        x=(x * 20).int() if draw(st.booleans()) else x, w_words=words(random, directions, 4 * outputs, width),
        recurrence=Recurrence(
            floats(random, directions, 4 * width) * random.choice([0.01, 1]), scale_x, bias,
            floats(random, directions, width) * 0.3 if draw(st.booleans()) else None,
            draw(st.sampled_from([None, None, 1e-5])) if statistics else None, gates, candidate,
            draw(st.sampled_from(recurrence.READOUTS)),
            draw(st.sampled_from(recurrence.FEEDBACKS)) if gates == 'binary' else 'h'),
        h_words=words(random, directions, batch, width), cell=cell,
        lengths=torch.from_numpy(random.integers(-1, steps + 2, batch)) if draw(st.booleans()) else None,
        **draw(st.sampled_from([dict(pack=True, keep=True), dict(pack=True, keep=False), dict(pack=False, keep=True)])))


@st.composite
def attentions(draw, queries=20, keys=(1, 5, 31, 32, 33, 49, 64, 65, 100, 300),
               features=(1, 7, 8, 16, 32, 33, 64, 65, 100, 255), values=(1, 5, 8, 16, 33, 64, 80)):
    """Arguments of binary_attention: any rule in any plane, limits on ties and beyond both ends, masks with empty rows."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batch, queries = draw(st.sampled_from([1, 2, 2, 0])), draw(st.sampled_from([queries, 3, 2, 1, 0]))
    heads, planes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    keys, features, values = (draw(st.sampled_from(sizes)) for sizes in (keys, features, values))
    rules = [draw(st.sampled_from(attention.RULES)) for _ in range(planes)]
    # Most random scores lie within a few deviations of each other: near the best one each limit decides otherwise.
    near = draw(st.booleans())
    scores = {'bool': (-features - 3, features + 4), 'max_relative': (-2, 9 if near else 2 * features + 3)}
    limit = np.stack([random.integers(*scores[rule], heads) if rule in scores else
                      random.choice([-1, 0, 0.3 / keys, 1 / keys, 1, 2], heads) for rule in rules]).astype(np.float64)
    table = None
    if 'elastic' in rules:
        scale = torch.from_numpy(random.choice([0, 0.02, 0.125, 1], draw(st.sampled_from([1, heads]))))
        table = attention.attention_table(scale, features)
    mask = draw(st.sampled_from(['keys', 'all', 'none', 'none']))
    if mask != 'none':
        shape = (draw(st.sampled_from([1, batch])), 1 if mask == 'keys' else queries, keys)
        mask_words = words(random, *shape)
    return dict(
        q_words=words(random, batch, queries, heads, features), k_words=words(random, batch, keys, heads, features),
        v_words=words(random, batch, heads, values, keys), head_dim=features,
        planes=Planes(tuple(rules), torch.from_numpy(limit), table,
                      floats(random, planes, heads) if planes > 1 or draw(st.booleans()) else None),
        mask_words=None if mask == 'none' else mask_words)


@st.composite
def normalized(draw, channels=CHANNELS):
    """Arguments of pack_normalized: small integers, so that values meet their levels."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lead, width = draw(st.lists(st.integers(0, 5), max_size=2)), draw(channels)

    def integers(*shape):
        return torch.from_numpy(random.integers(-2, 3, shape).astype(np.float32))

    return dict(x=integers(*lead, width).to(draw(st.sampled_from(STREAMS))), mean=integers(*lead), std=integers(*lead).abs(),
                threshold=torch.where(torch.from_numpy(random.random(width) < 0.1), torch.inf, integers(width)),
                flip=torch.from_numpy(random.random(width) < 0.5) if draw(st.booleans()) else None)
