"""The fused operators against numpy: every operation in float32, in the order that epilogue.py gives."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bnn_kernels as bk

from . import oracle
from .test_ops import CHANNELS, PROPERTY, pairs

pytestmark = [pytest.mark.sanitize, pytest.mark.usefixtures('reference_and_chosen')]
STREAMS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@st.composite
def convolutions(draw):
    """A convolution's words, weight words and keywords, and its accumulators [N, O, H', W'] by the oracle."""
    groups, per_group, seed = draw(st.integers(1, 3)), draw(CHANNELS), draw(oracle.SEEDS)
    image, kernel, stride, padding = draw(pairs(1, 6)), draw(pairs(1, 3)), draw(pairs(1, 2)), draw(pairs(0, 2))
    dilation, pad_value = draw(pairs(1, 2)), draw(st.sampled_from([0, -1, 1]))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(r <= i + 2 * p for r, i, p in zip(reach, image, padding, strict=True)))
    x = oracle.values(seed, draw(st.integers(0, 2)), per_group * groups, *image)
    weight = oracle.values(seed + 1, draw(st.integers(1, 3)) * groups, per_group, *kernel)
    keywords = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, pad_value=pad_value)
    acc = oracle.conv2d(x, weight, stride, padding, dilation, groups, pad_value)
    return (bk.pack_activations(x, groups=groups), bk.pack_weight(weight), per_group * groups), keywords, acc


@st.composite
def epilogues(draw, outputs: int):
    """Parameters with negative scales, exact zeros and thresholds that are met exactly."""
    width, seed = outputs * draw(st.sampled_from([1, 1, 2, 4])), draw(oracle.SEEDS)
    vectors = [oracle.values(seed + i, width) for i in range(6)]
    act = draw(st.sampled_from(['identity', 'relu', 'hardtanh', 'prelu', 'rprelu']))
    gamma, slope, zeta = {'prelu': (None, vectors[3], None), 'rprelu': vectors[2:5]}.get(act, (None, None, None))
    threshold = draw(st.sampled_from([None, vectors[5]]))
    out_groups = draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0]))
    act = 'prelu' if act == 'rprelu' else act
    return bk.Epilogue(vectors[0], vectors[1], act, gamma, slope, zeta, threshold, out_groups)


def stream_of(acc: torch.Tensor, epilogue: bk.Epilogue, shortcut: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    def column(vector):
        return vector.numpy()[None, :, None, None]

    one = np.float32
    width = epilogue.scale.numel()
    v = np.stack([acc.numpy()[:, j % acc.shape[1]] for j in range(width)], 1).astype(one) * column(epilogue.scale)
    v = v + column(epilogue.bias)
    if shortcut is not None:
        v = v + shortcut.float().numpy()
    if epilogue.act == 'prelu':
        if epilogue.gamma is not None:
            v = v - column(epilogue.gamma)
        v = np.where(v > 0, v, column(epilogue.slope) * v)
        if epilogue.zeta is not None:
            v = v + column(epilogue.zeta)
    elif epilogue.act == 'relu':
        v = np.maximum(v, one(0))
    elif epilogue.act == 'hardtanh':
        v = np.minimum(np.maximum(v, one(-1)), one(1))
    assert v.dtype == one
    return torch.from_numpy(np.ascontiguousarray(v)).to(dtype)


def words_of(stream: torch.Tensor, threshold: torch.Tensor | None, groups: int) -> torch.Tensor:
    batch, width, *image = stream.shape
    rows = oracle.signs(stream, threshold).permute(0, 2, 3, 1).reshape(-1, width).tolist()
    rows = [oracle.words(row, groups) for row in rows]
    return torch.tensor(rows, dtype=torch.int32).reshape(batch, *image, groups * ((width // groups + 31) // 32))


@PROPERTY
@given(data=st.data(), conv=convolutions(), dtype=STREAMS, shortcut=st.sampled_from(['none', 'same', 'other']),
       wanted=st.sampled_from([(True, True), (True, False), (False, True)]))
def test_binary_block2d(data, conv, dtype, shortcut, wanted):
    arguments, keywords, acc = conv
    epilogue = data.draw(epilogues(acc.shape[1]))
    shape = (acc.shape[0], epilogue.scale.numel(), *acc.shape[2:])
    residual = None if shortcut == 'none' else oracle.values(data.draw(oracle.SEEDS), *shape).to(
        dtype if shortcut == 'same' else torch.bfloat16)
    words, stream = bk.binary_block2d(*arguments, epilogue, residual, **keywords, dtype=dtype, pack=wanted[0], keep=wanted[1])
    expected = stream_of(acc, epilogue, residual, dtype)
    assert (words is not None, stream is not None) == wanted
    if stream is not None:
        assert stream.dtype == dtype
        assert torch.equal(stream, expected)
        assert stream.is_contiguous(memory_format=torch.channels_last)
    if words is not None:
        assert words.is_contiguous()
        assert torch.equal(words, words_of(expected, epilogue.threshold, epilogue.out_groups))
        assert torch.equal(words, bk.pack_activations(expected, epilogue.threshold, epilogue.out_groups))


@PROPERTY
@given(data=st.data(), conv=convolutions(), dtype=STREAMS, pack=st.booleans())
def test_in_place_is_the_same(data, conv, dtype, pack):
    arguments, keywords, acc = conv
    epilogue = data.draw(epilogues(acc.shape[1]))
    shape = (acc.shape[0], epilogue.scale.numel(), *acc.shape[2:])
    stream = torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
    stream.copy_(oracle.values(data.draw(oracle.SEEDS), *shape))
    words, expected = bk.binary_block2d(*arguments, epilogue, stream.clone(), **keywords, dtype=dtype)
    result = bk.binary_block2d_(stream, *arguments, epilogue, **keywords, pack=pack)
    assert torch.equal(stream, expected)
    assert torch.equal(result, words) if pack else result is None


@PROPERTY
@given(data=st.data(), conv=convolutions(), flips=st.booleans(), seed=oracle.SEEDS)
def test_binary_conv2d_sign(data, conv, flips, seed):
    arguments, keywords, acc = conv
    width = acc.shape[1] * data.draw(st.sampled_from([1, 2, 4]))
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0]))
    draw = np.random.default_rng(seed)
    threshold = draw.choice([-2**31, 2**31 - 1, -3, -2, -1, 0, 1, 2, 3], width).astype(np.int32)
    flip = draw.integers(0, 2, width).astype(bool) if flips else None
    bits = np.stack([acc.numpy()[:, j % acc.shape[1]] for j in range(width)], 1) >= threshold[None, :, None, None]
    bits = bits if flip is None else bits != flip[None, :, None, None]
    result = bk.binary_conv2d_sign(*arguments, torch.from_numpy(threshold), None if flip is None else torch.from_numpy(flip),
                                   **keywords, out_groups=groups)
    assert torch.equal(result, words_of(torch.from_numpy(np.where(bits, 1.0, -1.0)), None, groups))


@settings(deadline=None, max_examples=30)
@given(batch=st.integers(0, 2), channels=st.integers(1, 20), outputs=st.integers(1, 20), image=pairs(1, 9),
       pool=st.integers(1, 3), dtype=STREAMS, seed=oracle.SEEDS)
def test_downsample2d(batch, channels, outputs, image, pool, dtype, seed):
    x = torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, channels, *image))).to(dtype)
    weight, bias = (torch.from_numpy(np.random.default_rng(seed + i).normal(size=s)).float()
                    for i, s in ((1, (outputs, channels)), (2, (outputs,))))
    expected = torch.zeros(batch, outputs, -(-image[0] // pool), -(-image[1] // pool), dtype=torch.float64)
    for row in range(expected.shape[2]):
        for column in range(expected.shape[3]):
            window = x[:, :, row * pool:(row + 1) * pool, column * pool:(column + 1) * pool].double()
            expected[:, :, row, column] = window.mean((2, 3)) @ weight.double().T + bias.double()
    result = bk.downsample2d(x, weight, bias, pool)
    assert result.dtype == dtype
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result, expected.to(dtype))


# --- compile, bad input --------------------------------------------------------------------------------------

@pytest.fixture
def block():
    x, weight = torch.randn(1, 40, 4, 5), torch.randn(6, 40, 3, 3)
    return (bk.pack_activations(x), bk.pack_weight(weight), 40), bk.Epilogue(torch.randn(6), torch.randn(6))


def test_operators_pass_opcheck(block):
    (words, weight, channels), epilogue = block
    conv = (words, weight, channels, [1, 1], [1, 1], [1, 1], 1, 0)
    stream = torch.randn(1, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    ops = torch.ops.bnn_kernels
    for pack, keep in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(ops.binary_block2d.default, (*conv, epilogue.scale, epilogue.bias, stream, *epilogue[2:],
                                                           torch.bfloat16, pack, keep))
    torch.library.opcheck(ops.binary_block2d_.default, (stream, *conv, *epilogue, True))
    torch.library.opcheck(ops.binary_conv2d_sign.default, (*conv, torch.zeros(12, dtype=torch.int32), None, 2))
    torch.library.opcheck(ops.downsample2d.default, (stream, torch.randn(3, 6), torch.randn(3), 2))


@pytest.mark.compiles
def test_in_place_block_compiles(block):
    arguments, epilogue = block

    def net(stream):
        stream = stream + 1
        words = bk.binary_block2d_(stream, *arguments, epilogue, padding=1)
        return stream * 2, words

    stream = torch.randn(1, 6, 4, 5).contiguous(memory_format=torch.channels_last)
    for result, expected in zip(torch.compile(net, fullgraph=True)(stream), net(stream), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(scale=torch.ones(7)), ValueError, r'scale must have one element per output channel, \[6\] or a multiple'),
    (dict(bias=torch.ones(12)), ValueError, r'bias must be \[6\]'),
    (dict(bias=torch.ones(6).double()), TypeError, 'bias must be torch.float32, got torch.float64'),
    (dict(act='prelu'), ValueError, "act='prelu' needs slope"),
    (dict(act='rprelu'), ValueError, "Unknown act 'rprelu': did you mean 'prelu'"),
    (dict(slope=torch.ones(6)), ValueError, "belong to act='prelu', got act='identity'"),
    (dict(threshold=torch.ones(1)), ValueError, r'threshold must be \[6\]'),
    (dict(threshold=torch.ones(6, device='meta')), ValueError, 'threshold on meta'),
    (dict(out_groups=4), ValueError, 'groups=4 does not divide channels=6'),
])
def test_wrong_epilogue(block, change, error, message):
    arguments, epilogue = block
    with pytest.raises(error, match=message):
        bk.binary_block2d(*arguments, epilogue._replace(**change), padding=1)


@pytest.mark.parametrize(('change', 'error', 'message'), [
    (dict(shortcut=torch.ones(1, 6, 4, 4)), ValueError, r'shortcut must have the shape of the output, \[1, 6, 4, 5\]'),
    (dict(shortcut=torch.ones(1, 6, 4, 5).double()), TypeError, 'shortcut must be float32, float16 or bfloat16'),
    (dict(dtype=torch.float64), TypeError, 'dtype of the stream'),
    (dict(pack=False, keep=False), ValueError, 'nothing to return'),
    (dict(pad_value=2), ValueError, 'pad_value must be 0, -1 or 1'),
])
def test_wrong_block(block, change, error, message):
    arguments, epilogue = block
    with pytest.raises(error, match=message):
        bk.binary_block2d(*arguments, epilogue, **{'padding': 1, **change})


def test_in_place_needs_channels_last(block):
    arguments, epilogue = block
    with pytest.raises(ValueError, match='in place on a stream in channels-last memory'):
        bk.binary_block2d_(torch.randn(1, 6, 4, 5), *arguments, epilogue, padding=1)


def test_wrong_downsample():
    x = torch.randn(1, 6, 4, 4)
    for arguments, error, message in (((x[0], torch.ones(3, 6), torch.ones(3)), ValueError, 'takes x'),
                                      ((x.double(), torch.ones(3, 6), torch.ones(3)), TypeError, 'x must be'),
                                      ((x, torch.ones(3, 5), torch.ones(3)), ValueError, r'float32 \[O, 6\]'),
                                      ((x, torch.ones(3, 6), torch.ones(4)), ValueError, r'bias must be \[3\]'),
                                      ((x, torch.ones(3, 6), torch.ones(3), 0), ValueError, 'pool must be')):
        with pytest.raises(error, match=message):
            bk.downsample2d(*arguments)
