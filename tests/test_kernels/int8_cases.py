"""Random calls of int8_conv2d, as keyword arguments of a backend."""

import numpy as np
import torch
from hypothesis import strategies as st

from bnn_kernels import checks
from bnn_kernels.epilogue import ACTS, Epilogue
from bnn_kernels.geometry import Int8Conv2dGeometry, Pool2dGeometry

from . import cases

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


def pooled(call: dict, seed: int) -> dict:
    """The arguments of int8_pooled2d for a convolution that is large enough."""
    random = np.random.default_rng(seed)
    call = {name: value for name, value in call.items() if name not in ('shortcut', 'keep')}
    window = tuple(int(random.integers(1, min(4, side) + 1)) for side in call['geometry'].size(call['x'].shape[2:]))
    stride, padding = (tuple(int(random.integers(low, high + 1)) for low, high in pairs) for pairs in (
        [(1, 3)] * 2, [(0, k // 2) for k in window]))
    call['window'] = Pool2dGeometry('max', window, stride, padding)
    call['epilogue'] = call['epilogue']._replace(out_groups=1)
    call['pack'] &= call['epilogue'].width == call['geometry'].outputs
    return call


@st.composite
def quantizations(draw):
    """Arguments of quantize, of any number of dimensions and memory format: halves, both ends, no numbers."""
    random, shape = np.random.default_rng(draw(st.integers(0, 2**32 - 1))), draw(st.lists(st.integers(0, 5), max_size=4))
    known = [-np.inf, np.nan, np.inf, -0.0, 0.25, 0.5, 0.75, 1e9, -1e-40, *random.normal(size=9) * 30]
    x = torch.from_numpy(np.asarray(random.choice(known, shape))).to(draw(st.sampled_from(cases.STREAMS)))
    if draw(st.booleans()):
        x = torch.stack([x, x], -1)[..., 0]
    if x.dim() == 4 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    return dict(x=x, scale=torch.tensor([draw(st.sampled_from([0.5, 0.3]))]), zero_point=drawn(random, draw(KINDS), 1))
