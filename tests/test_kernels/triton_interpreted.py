"""The plain Triton kernels in Triton's interpreter against the reference; test_triton.py runs this file.

In a process of its own, with TRITON_INTERPRET=1 and BNN_KERNELS_BACKEND=triton-popcount or triton-bitplane: kernels are
interpreted or compiled as they are defined.
"""

import os

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels import dispatch
from bnn_kernels.reference import Reference

from . import cases, oracle, test_stem
from .int8_cases import convolutions as int8_convolutions
from .int8_cases import pooled, quantizations
from .test_fused import STREAMS, epilogues
from .test_ops import CHANNELS, FLOATS, Net, pairs

BACKEND = os.environ['BNN_KERNELS_BACKEND']
KERNELS = st.sampled_from([(1, 1), (3, 3), (1, 3), (2, 1), (3, 2)])


def examples(count: int):
    # Shrinking would interpret for minutes; the examples are small as they are.
    return settings(deadline=None, max_examples=count, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def agree(op, *arguments, **keywords) -> tuple[torch.Tensor, ...]:
    """Runs a call on the backend and on the reference, asserts equal tensors in equal memory, and returns them."""
    def run():
        stated = [a.clone(memory_format=torch.preserve_format) if isinstance(a, torch.Tensor) else a for a in arguments]
        results = op(*stated, **keywords)
        return [*(results if isinstance(results, tuple) else (results,)), *(stated[:1] if op is bk.binary_block2d_ else ())]

    results = run()
    assert bk.last_backend() == BACKEND
    with bk.set_backend('reference'):
        expected = run()
    for result, right in zip(results, expected, strict=True):
        assert (result is None) == (right is None)
        if result is not None:
            assert result.dtype == right.dtype
            assert result.stride() == right.stride() or result.numel() == 0
            torch.testing.assert_close(result, right, rtol=0, atol=0, equal_nan=True)
    return tuple(results)


def convolution(seed, batch, per_group, outputs, groups, image, kernel):
    """Words of an image and of a weight, and the channels."""
    x = oracle.values(seed, batch, per_group * groups, *image)
    weight = oracle.values(seed + 1, outputs * groups, per_group, *kernel)
    with bk.set_backend('reference'):
        return bk.pack_activations(x, groups=groups), bk.pack_weight(weight), per_group * groups


@st.composite
def convolutions(draw, outputs=(1, 2, 5, 32, 33)):
    groups, kernel, image = draw(st.integers(1, 3)), draw(KERNELS), draw(pairs(1, 6))
    stride, padding, dilation = draw(pairs(1, 3)), draw(pairs(0, 2)), draw(pairs(1, 2))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(r <= i + 2 * p for r, i, p in zip(reach, image, padding, strict=True)))
    words = convolution(draw(oracle.SEEDS), draw(st.integers(0, 2)), draw(CHANNELS), draw(st.sampled_from(outputs)), groups,
                        image, kernel)
    return words, dict(stride=stride, padding=padding, dilation=dilation, groups=groups,
                       pad_value=draw(st.sampled_from([0, 0, -1, 1])))


# --- packing -------------------------------------------------------------------------------------------------

@examples(40)
@given(channels=CHANNELS, groups=st.integers(1, 3), image=pairs(1, 4), x_type=FLOATS, threshold_type=FLOATS,
       threshold=st.sampled_from(['none', 'one', 'scalar', 'all']),
       memory=st.sampled_from(['dense', 'channels last', 'slice']), seed=oracle.SEEDS)
def test_pack_activations(channels, groups, image, x_type, threshold_type, threshold, memory, seed):
    channels *= groups
    x = oracle.values(seed, 2, channels, *image).to(x_type)
    if memory == 'channels last':
        x = x.contiguous(memory_format=torch.channels_last)
    elif memory == 'slice':
        x = torch.stack([x, -x], -1).flatten(3)[..., ::2]
    sizes = {'none': None, 'one': (1,), 'scalar': (), 'all': (channels,)}[threshold]
    agree(bk.pack_activations, x, None if sizes is None else oracle.values(seed + 1, *sizes).to(threshold_type), groups)


@examples(20)
@given(lead=st.lists(st.integers(0, 3), max_size=3), channels=CHANNELS, with_threshold=st.booleans(), seed=oracle.SEEDS)
def test_pack_features(lead, channels, with_threshold, seed):
    threshold = oracle.values(seed + 1, channels) if with_threshold else None
    agree(bk.pack_features, oracle.values(seed, *lead, channels), threshold)


def test_pack_compares_in_the_wider_dtype_and_nan_is_minus_one():
    x = torch.tensor([[0.1, float('nan'), float('inf'), -float('inf'), -0.0]], dtype=torch.float16)
    assert agree(bk.pack_features, x, torch.full((5,), 0.1))[0].tolist() == [[0b00100]]
    assert agree(bk.pack_features, x.bfloat16())[0].tolist() == [[0b10101]]
    above = torch.tensor([[1 + 2**-40, 1]], dtype=torch.float64)  # equal in float32
    assert agree(bk.pack_features, above, above[0, :1])[0].tolist() == [[0b01]]


@examples(20)
@given(call=cases.downsamples())
def test_downsample2d(call):
    cases.check_downsample(bk.downsample2d(**call), call)
    assert bk.last_backend() == BACKEND
    nchw, channels_last = call['x'].contiguous(), call['x'].contiguous(memory_format=torch.channels_last)
    assert torch.equal(*[bk.downsample2d(**call | dict(x=x)) for x in (nchw, channels_last)])


# --- integer convolutions ------------------------------------------------------------------------------------

@examples(50)
@given(conv=convolutions())
def test_binary_conv2d(conv):
    agree(bk.binary_conv2d, *conv[0], **conv[1])


@pytest.mark.parametrize(('channels', 'outputs', 'groups', 'image', 'kernel', 'keywords'), [
    (70, 70, 1, (9, 8), (3, 3), dict(padding=1)),  # several tiles of pixels and of channels
    (256, 33, 1, (3, 4), (3, 3), dict(padding=1, pad_value=1)),  # eight words
    (3, 5, 1, (9, 10), (7, 7), dict(stride=2, padding=3)),
    (33, 4, 1, (7, 6), (5, 5), dict(padding=2, pad_value=-1)),
    (5, 4, 1, (9, 12), (5, 2), dict(padding=(4, 1), dilation=(2, 3), stride=(1, 2))),
    (8, 2, 4, (5, 5), (3, 3), dict(padding=1, pad_value=1)),
    (4, 3, 1, (4, 4), (1, 1), dict(padding=3)),  # pixels without any tap
])
def test_shapes(channels, outputs, groups, image, kernel, keywords):
    words = convolution(0, 2, channels, outputs, groups, image, kernel)
    agree(bk.binary_conv2d, *words, groups=groups, **keywords)


def test_words_of_any_stride():
    x_words, w_words, channels = convolution(0, 1, 40, 6, 1, (4, 5), (3, 3))
    x_words, w_words = (torch.stack([words, ~words], -1)[..., 0] for words in (x_words, w_words))
    assert not x_words.is_contiguous()
    assert not w_words.is_contiguous()
    agree(bk.binary_conv2d, x_words, w_words, channels)


@examples(25)
@given(batch=st.integers(0, 2), per_group=CHANNELS, outputs=st.integers(1, 3), groups=st.integers(1, 2), image=pairs(1, 4),
       kernel=pairs(1, 3), stride=pairs(1, 3), padding=pairs(0, 2), output_padding=pairs(0, 2), dilation=pairs(1, 2),
       seed=oracle.SEEDS)
def test_binary_conv_transpose2d(batch, per_group, outputs, groups, image, kernel, stride, padding, output_padding, dilation,
                                 seed):
    assume(all(o < max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)))
    assume(all((i - 1) * s - 2 * p + d * (k - 1) + o >= 0 for i, k, s, p, o, d in
               zip(image, kernel, stride, padding, output_padding, dilation, strict=True)))
    agree(bk.binary_conv_transpose2d, *convolution(seed, batch, per_group, outputs, groups, image, kernel), stride, padding,
          output_padding, dilation, groups)


@examples(20)
@given(lead=st.lists(st.integers(0, 3), max_size=3), features=CHANNELS, outputs=st.integers(1, 70), seed=oracle.SEEDS)
def test_binary_linear(lead, features, outputs, seed):
    with bk.set_backend('reference'):
        x_words = bk.pack_features(oracle.values(seed, *lead, features))
    agree(bk.binary_linear, x_words, bk.pack_weight(oracle.values(seed + 1, outputs, features)), features)


# --- fused ---------------------------------------------------------------------------------------------------

def image_of(words, keywords, seed, channels, dtype):
    """A shortcut for a convolution, channels-last."""
    with bk.set_backend('reference'):
        batch, _, *size = bk.binary_conv2d(*words, **keywords).shape
    values = oracle.values(seed, batch, channels, *size).to(dtype)
    return values.contiguous(memory_format=torch.channels_last)


@examples(50)
@given(data=st.data(), conv=convolutions(), dtype=STREAMS, shortcut=st.sampled_from(['none', 'same', 'other']),
       wanted=st.sampled_from([(True, True), (True, False), (False, True)]))
def test_binary_block2d(data, conv, dtype, shortcut, wanted):
    words, keywords = conv
    epilogue = data.draw(epilogues(words[1].shape[0]))
    residual = None if shortcut == 'none' else image_of(*conv, data.draw(oracle.SEEDS), epilogue.scale.numel(),
                                                        dtype if shortcut == 'same' else torch.bfloat16)
    agree(bk.binary_block2d, *words, epilogue, residual, **keywords, dtype=dtype, pack=wanted[0], keep=wanted[1])


@examples(16)
@given(data=st.data(), conv=convolutions(), dtype=STREAMS, pack=st.booleans())
def test_in_place(data, conv, dtype, pack):
    words, keywords = conv
    epilogue = data.draw(epilogues(words[1].shape[0]))
    stream = image_of(*conv, data.draw(oracle.SEEDS), epilogue.scale.numel(), dtype)
    agree(bk.binary_block2d_, stream, *words, epilogue, **keywords, pack=pack)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(('act', 'replicas', 'out_groups'), [
    ('prelu', 4, 2), ('relu', 1, 1), ('hardtanh', 2, 4), ('identity', 3, 1), ('silu', 1, 1),
])
def test_real_values_of_whole_words(dtype, act, replicas, out_groups):
    """Values that must be rounded, not only cut; infinities and NaN; replicas that are packed where they are computed."""
    torch.manual_seed(replicas)
    words = convolution(1, 1, 70, 64, 1, (4, 5), (3, 3))
    vectors = torch.randn(6, 64 * replicas)
    vectors[0, 3], vectors[1, 5], vectors[1, 7] = float('inf'), float('nan'), 1e-40
    gamma, slope, zeta = vectors[2:5] if act == 'prelu' else (None, None, None)
    epilogue = bk.Epilogue(vectors[0], vectors[1], act, gamma, slope, zeta, vectors[5], out_groups)
    shortcut = torch.randn(1, 64 * replicas, 4, 5).to(dtype)
    shortcut[0, 9, 1] = float('nan')
    agree(bk.binary_block2d, *words, epilogue, shortcut, padding=1, dtype=dtype)


@examples(25)
@given(data=st.data(), conv=convolutions(outputs=(1, 3, 32)), flips=st.booleans(), seed=oracle.SEEDS)
def test_binary_conv2d_sign(data, conv, flips, seed):
    words, keywords = conv
    width = words[1].shape[0] * data.draw(st.sampled_from([1, 2, 4]))
    generator = torch.Generator().manual_seed(seed)
    threshold = torch.tensor([-2**31, 2**31 - 1, -3, -2, -1, 0, 1, 2, 3], dtype=torch.int32)
    threshold = threshold[torch.randint(9, (width,), generator=generator)]
    flip = torch.randint(2, (width,), generator=generator).bool() if flips else None
    groups = data.draw(st.sampled_from([g for g in (1, 2, 3) if width % g == 0]))
    agree(bk.binary_conv2d_sign, *words, threshold, flip, **keywords, out_groups=groups)


@pytest.mark.parametrize(('outputs', 'groups', 'replicas', 'out_groups'), [
    (5, 1, 4, 1), (5, 1, 4, 2), (6, 2, 1, 1), (64, 2, 2, 4),
])
def test_words_that_cross_tiles(outputs, groups, replicas, out_groups):
    """Replicas and groups that do not end with a word, in either epilogue; the last case is one that does."""
    words = convolution(3, 2, 9, outputs // groups, groups, (3, 4), (3, 3))
    width = outputs * replicas
    vectors = oracle.values(4, 3, width)
    agree(bk.binary_conv2d_sign, *words, vectors[0].int(), vectors[1] > 0, groups=groups, out_groups=out_groups)
    agree(bk.binary_block2d, *words, bk.Epilogue(*vectors[:2], threshold=vectors[2], out_groups=out_groups), groups=groups)


# --- sequences -----------------------------------------------------------------------------------------------

once = pytest.mark.skipif(BACKEND != 'triton-popcount', reason='both backends have the same kernels')


def agree_with_the_reference(op, call, image=torch.contiguous_format) -> None:
    """`image`: memory format of four dimensions that are no words."""
    results, expected = dispatch.bind(op, {}, call)(**call), getattr(Reference(), op)(**call)
    assert bk.last_backend() == BACKEND
    for pair in zip(results, expected, strict=True) if isinstance(expected, tuple) else [(results, expected)]:
        is_image = pair[1].dim() == 4 and pair[1].dtype != torch.int32
        assert cases.same(*pair, image if is_image else torch.contiguous_format)


@once
@examples(20)
@given(call=cases.lstms(st.sampled_from([1, 5, 31, 32, 33, 70]), steps=3, batch=3, statistics=False))
def test_binary_lstm(call):
    agree_with_the_reference('binary_lstm', call)


@once
@examples(12)
@given(call=cases.attentions(queries=4, keys=(1, 31, 33, 64, 70), features=(1, 32, 33, 64, 100), values=(1, 8, 33, 70)))
def test_binary_attention(call):
    agree_with_the_reference('binary_attention', call)


@once
@examples(15)
@given(call=cases.normalized())
def test_pack_normalized(call):
    agree_with_the_reference('pack_normalized', call)


# --- int8 ----------------------------------------------------------------------------------------------------

@once
@examples(60)
@given(call=st.one_of(int8_convolutions(image=4), int8_convolutions(transposed=True, image=3)))
def test_int8_conv2d(call):
    agree_with_the_reference('int8_conv2d', call, torch.channels_last)


@once
@examples(30)
@given(call=int8_convolutions(image=5), seed=st.integers(0, 2**31))
def test_int8_pooled2d(call, seed):
    agree_with_the_reference('int8_pooled2d', pooled(call, seed), torch.channels_last)


@once
@examples(40)
@given(call=quantizations())
def test_quantize(call):
    agree_with_the_reference('quantize', call, torch.channels_last)


def test_statistics_are_left_to_others():
    parameters = bk.Recurrence(torch.ones(1, 12), eps=1e-5)
    with pytest.raises(RuntimeError, match=f'{BACKEND}: the Triton backends run an LSTM tile by tile'):
        bk.binary_lstm(torch.zeros(1, 1, 1, 12), torch.zeros(1, 12, 1).int(), parameters)


# --- around the kernels --------------------------------------------------------------------------------------

def test_compiles_in_one_graph():
    net, x = Net(), torch.randn(2, 10, 7, 5)
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')(x)
    assert bk.last_backend() == BACKEND
    with bk.set_backend('reference'):
        assert torch.equal(compiled, net(x))


def test_warmup_names_the_backend():
    ran = bk.warmup(Net().eval(), [(1, 10, 5, 5)])
    assert set(ran.values()) == {BACKEND}
    assert 'binary_conv_transpose2d' in ran


def test_sizes_are_no_part_of_what_is_compiled():
    from bnn_kernels.triton import launch
    before = launch._constants.cache_info()
    for image in (3, 3), (3, 4), (5, 3):
        agree(bk.binary_conv2d, *convolution(0, 1, 7, 9, 1, image, (3, 3)), padding=1)
    after = launch._constants.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2)


@examples(60)
@given(call=test_stem.stems())
def test_stem2d(call):
    """On whole numbers, of which no sum rounds: everything behind the sums is bit for bit the reference's."""
    call |= dict(x=call['x'].round(), weight=(4 * call['weight']).round())
    for got, want in zip(test_stem.run(BACKEND, call), test_stem.run('reference', call), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert torch.equal(got, want)
            assert got.stride() == want.stride() or not got.numel()


def test_a_stem_passes_what_is_no_number():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 2, 3], x[0, 0, 5, 5] = float('nan'), -float('inf')
    vector = torch.ones(2)
    agree(bk.stem2d, x, torch.ones(2, 1, 1, 1), bk.Epilogue(vector, vector), window=3, window_stride=2, window_padding=1)


@pytest.mark.parametrize(('change', 'error', 'sentence'), [
    (dict(x_words=torch.zeros(1, 4, 5, 2)), TypeError, 'x_words must be int32 words, got torch.float32: pack it with'),
    (dict(x_words=torch.zeros(1, 4, 5, 3, dtype=torch.int32)), ValueError, 'x_words has 3 words .* pack it with'),
    (dict(w_words=torch.zeros(6, 3, 3, 2, dtype=torch.int32, device='meta')), ValueError, 'on cpu and w_words on meta: move'),
    (dict(x_words=torch.zeros(4, 5, 2, dtype=torch.int32)), ValueError, r'x_words must be \[N, H, W, groups \* words\]'),
])
def test_errors_are_one_sentence(change, error, sentence):
    call = dict(x_words=torch.zeros(1, 4, 5, 2, dtype=torch.int32), w_words=torch.zeros(6, 3, 3, 2, dtype=torch.int32))
    with pytest.raises(error, match=sentence) as caught:
        bk.binary_conv2d(**call | change, channels=40)
    assert '\n' not in str(caught.value)


def test_interpreted_kernels_take_cpu_tensors():
    x = torch.zeros(1, 4, 5, 2, dtype=torch.int32, device='meta')
    refusals = bk.selection('binary_linear', x_words=x, w_words=x, features=64).refusals
    assert refusals[BACKEND] == f'{BACKEND} is interpreted (TRITON_INTERPRET=1) and takes CPU tensors, got meta'


def test_too_many_pixels_are_refused():
    word = torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r'one call reads or writes 2147483648 pixels, the limit is .* split the batch'):
        bk.binary_conv2d_sign(word.expand(2**16, 2**15, 1, 1), word, 1, word.flatten())
