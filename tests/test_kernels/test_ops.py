import inspect
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels import checks, dispatch, reference

from . import oracle

pytestmark = [pytest.mark.sanitize, pytest.mark.usefixtures('reference_and_chosen')]
PROPERTY = settings(deadline=None, max_examples=60)
CHANNELS = st.one_of(st.integers(1, 40), st.sampled_from([31, 32, 33, 64, 65]))
FLOATS = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


def pairs(low: int, high: int):
    return st.tuples(st.integers(low, high), st.integers(low, high))


def same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    return result.dtype == torch.int32 and torch.equal(result, expected)


# --- packing -------------------------------------------------------------------------------------------------

@PROPERTY
@given(channels=CHANNELS, groups=st.integers(1, 3), image=pairs(1, 4),
       threshold=st.sampled_from(['none', 'one', 'scalar', 'all']), x_type=FLOATS, threshold_type=FLOATS,
       channels_last=st.booleans(), seed=oracle.SEEDS)
def test_pack_activations(channels, groups, image, threshold, x_type, threshold_type, channels_last, seed):
    channels *= groups
    x = oracle.values(seed, 2, channels, *image).to(x_type)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    sizes = {'none': None, 'one': (1,), 'scalar': (), 'all': (channels,)}[threshold]
    tau = None if sizes is None else oracle.values(seed + 1, *sizes).to(threshold_type)
    packed = bk.pack_activations(x, tau, groups)
    rows = oracle.signs(x, tau).permute(0, 2, 3, 1).reshape(-1, channels).tolist()
    expected = torch.tensor([oracle.words(row, groups) for row in rows], dtype=torch.int32)
    assert packed.is_contiguous()
    assert same(packed, expected.reshape(2, *image, -1))


@PROPERTY
@given(lead=st.lists(st.integers(0, 3), max_size=3), channels=CHANNELS, with_threshold=st.booleans(), seed=oracle.SEEDS)
def test_pack_features(lead, channels, with_threshold, seed):
    x = oracle.values(seed, *lead, channels)
    tau = oracle.values(seed + 1, channels) if with_threshold else None
    rows = oracle.signs(x.reshape(math.prod(lead), channels), tau).tolist()
    expected = torch.tensor([oracle.words(row) for row in rows], dtype=torch.int32)
    assert same(bk.pack_features(x, tau), expected.reshape(*lead, (channels + 31) // 32))


@pytest.mark.parametrize('shape', [(), (1,), (3,)])
def test_threshold_is_compared_in_the_wider_dtype(shape):
    """0.1 in float16 lies below 0.1 in float32; rounding the threshold to float16 would turn the bit."""
    x = torch.full((1, 3), 0.1, dtype=torch.float16)
    assert bk.pack_features(x, torch.full(shape, 0.1)).tolist() == [[0]]
    assert bk.pack_features(x, torch.full(shape, 0.1, dtype=torch.float16)).tolist() == [[7]]


# --- convolution, transposed convolution, linear -------------------------------------------------------------

@PROPERTY
@given(batch=st.integers(0, 2), per_group=CHANNELS, outputs=st.integers(1, 3), groups=st.integers(1, 3), image=pairs(1, 9),
       kernel=pairs(1, 4), stride=pairs(1, 3), padding=pairs(0, 3), dilation=pairs(1, 3),
       pad_value=st.sampled_from([0, -1, 1]), seed=oracle.SEEDS)
def test_binary_conv2d(batch, per_group, outputs, groups, image, kernel, stride, padding, dilation, pad_value, seed):
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(r <= i + 2 * p for r, i, p in zip(reach, image, padding, strict=True)))
    channels = per_group * groups
    x = oracle.values(seed, batch, channels, *image)
    weight = oracle.values(seed + 1, outputs * groups, per_group, *kernel)
    result = bk.binary_conv2d(bk.pack_activations(x, groups=groups), bk.pack_weight(weight), channels, stride, padding,
                              dilation, groups, pad_value)
    assert same(result, oracle.conv2d(x, weight, stride, padding, dilation, groups, pad_value))
    assert result.is_contiguous(memory_format=torch.channels_last)


@PROPERTY
@given(batch=st.integers(0, 2), per_group=CHANNELS, outputs=st.integers(1, 3), groups=st.integers(1, 3), image=pairs(1, 6),
       kernel=pairs(1, 4), stride=pairs(1, 3), padding=pairs(0, 3), output_padding=pairs(0, 2), dilation=pairs(1, 3),
       seed=oracle.SEEDS)
def test_binary_conv_transpose2d(batch, per_group, outputs, groups, image, kernel, stride, padding, output_padding,
                                 dilation, seed):
    assume(all(o < max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)))
    assume(all((i - 1) * s - 2 * p + d * (k - 1) + o >= 0 for i, k, s, p, o, d in
               zip(image, kernel, stride, padding, output_padding, dilation, strict=True)))
    channels = per_group * groups
    x, weight = oracle.values(seed, batch, channels, *image), oracle.values(seed + 1, channels, outputs, *kernel)
    result = bk.binary_conv_transpose2d(bk.pack_activations(x, groups=groups),
                                        bk.pack_weight(bk.transpose_weight(weight, groups)), channels, stride, padding,
                                        output_padding, dilation, groups)
    assert same(result, oracle.conv_transpose2d(x, weight, stride, padding, output_padding, dilation, groups))
    assert result.is_contiguous(memory_format=torch.channels_last)


@PROPERTY
@given(lead=st.lists(st.integers(0, 3), max_size=3), features=CHANNELS, outputs=st.integers(1, 5), seed=oracle.SEEDS)
def test_binary_linear(lead, features, outputs, seed):
    x, weight = oracle.values(seed, *lead, features), oracle.values(seed + 1, outputs, features)
    result = bk.binary_linear(bk.pack_features(x), bk.pack_weight(weight), features)
    exact = oracle.signs(x.reshape(math.prod(lead), features)) @ oracle.signs(weight).T
    assert same(result, exact.to(torch.int32).reshape(*lead, outputs))


@PROPERTY
@given(features=st.integers(1, 300), seed=oracle.SEEDS)
def test_popcount_arithmetic_of_the_words(features, seed):
    """The README's two formulas, on the packed words and in Python ints, give what the operator gives."""
    x_words = bk.pack_features(oracle.values(seed, 3, features))
    w_words = bk.pack_weight(oracle.values(seed + 1, 4, features))
    result = bk.binary_linear(x_words, w_words, features).tolist()
    assert result == [[oracle.xnor_dot(x, w, features) for w in w_words.tolist()] for x in x_words.tolist()]
    assert result == [[oracle.and_dot(x, w, features) for w in w_words.tolist()] for x in x_words.tolist()]


@PROPERTY
@given(channels=CHANNELS, image=pairs(1, 5), pad_value=st.sampled_from([0, -1, 1]), seed=oracle.SEEDS)
def test_popcount_arithmetic_at_the_border(channels, image, pad_value, seed):
    """A 3x3 convolution by popcounts: outside the image are no taps with 0, words of one sign with -1 and +1."""
    x_words = bk.pack_activations(oracle.values(seed, 1, channels, *image))
    w_words = bk.pack_weight(oracle.values(seed + 1, 2, channels, 3, 3))
    result = bk.binary_conv2d(x_words, w_words, channels, padding=1, pad_value=pad_value)
    rows, taps, outside = x_words[0].tolist(), w_words.tolist(), oracle.words([pad_value] * channels)

    def dot(o, h, w):
        total = 0
        for i in range(3):
            for j in range(3):
                inside = 0 <= h + i - 1 < image[0] and 0 <= w + j - 1 < image[1]
                if inside or pad_value:
                    total += oracle.xnor_dot(rows[h + i - 1][w + j - 1] if inside else outside, taps[o][i][j], channels)
        return total

    assert result[0].tolist() == [[[dot(o, h, w) for w in range(image[1])] for h in range(image[0])] for o in range(2)]


def test_non_contiguous_words():
    x, weight = torch.randn(2, 40, 6, 5), torch.randn(6, 40, 3, 3)
    x_words, w_words = bk.pack_activations(x), bk.pack_weight(weight)
    strided = [torch.stack([words, words], -1)[..., 0] for words in (x_words, w_words)]
    assert not any(words.is_contiguous() for words in strided)
    assert torch.equal(bk.binary_conv2d(*strided, 40), bk.binary_conv2d(x_words, w_words, 40))


def test_large_sums_survive_autocast():
    """Inside autocast a plain matmul would return 16-bit floats, which hold no odd number above 256."""
    x, weight = torch.ones(1, 513, 3, 3), torch.ones(1, 513, 3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = bk.binary_conv2d(bk.pack_activations(x), bk.pack_weight(weight), 513)
        z = bk.binary_conv_transpose2d(bk.pack_activations(x), bk.pack_weight(weight), 513, padding=2)
        t = bk.binary_linear(bk.pack_features(x.flatten(1)), bk.pack_weight(weight.flatten(1)), 9 * 513)
    assert y.item() == z.item() == t.item() == 9 * 513


def test_a_latent_input_gives_words_without_gradient():
    x = torch.randn(2, 5, requires_grad=True)
    assert not bk.pack_features(x).requires_grad


# --- torch.compile, torch.export -----------------------------------------------------------------------------

class Net(torch.nn.Module):
    """Every operator once."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer('conv', bk.pack_weight(torch.randn(8, 5, 3, 3, generator=generator)))
        self.register_buffer('up', bk.pack_weight(bk.transpose_weight(torch.randn(8, 3, 2, 2, generator=generator))))
        self.register_buffer('head', bk.pack_weight(torch.randn(4, 3, generator=generator)))
        self.register_buffer('threshold', torch.randn(10, generator=generator))

    def forward(self, x):
        x = bk.binary_conv2d(bk.pack_activations(x, self.threshold, 2), self.conv, 10, 2, (1, 0), groups=2, pad_value=-1) * 0.5
        x = bk.binary_conv_transpose2d(bk.pack_activations(x), self.up, 8, stride=2)
        return bk.binary_linear(bk.pack_features(x.float().mean((2, 3))), self.head, 3)


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
@pytest.mark.parametrize('dynamic', [False, True])
def test_compile_in_one_graph(backend, dynamic):
    torch._dynamo.reset()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend=backend, dynamic=dynamic)
    for size in (7, 5), (9, 12):
        x = torch.randn(2, 10, *size)
        assert torch.equal(compiled(x), net(x))


def test_export_with_a_dynamic_image():
    net, auto = Net(), torch.export.Dim.AUTO
    program = torch.export.export(net, (torch.randn(2, 10, 7, 9),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    x = torch.randn(3, 10, 12, 5)
    assert torch.equal(program.module()(x), net(x))
    called = {str(node.target) for node in program.graph.nodes if 'bnn_kernels' in str(node.target)}
    assert called == {f'bnn_kernels.{op}.default' for op in OPERATORS}


X = torch.randn(2, 10, 5, 7)
CALLS = {
    'pack_activations': (X, torch.randn(10), 2),
    'pack_features': (X.contiguous(memory_format=torch.channels_last), None),
    'binary_conv2d': (bk.pack_activations(X), bk.pack_weight(torch.randn(3, 10, 3, 2)), 10, [1, 2], [1, 0], [2, 1], 1, 1),
    'binary_conv_transpose2d': (bk.pack_activations(X), bk.pack_weight(torch.randn(3, 10, 3, 2)), 10, [2, 1], [1, 0], [1, 0],
                                [1, 2], 1),
    'binary_linear': (bk.pack_features(X), bk.pack_weight(torch.randn(4, 7)), 7),
}
OPERATORS = list(CALLS)


@pytest.mark.parametrize('op', OPERATORS)
def test_opcheck(op):
    torch.library.opcheck(getattr(torch.ops.bnn_kernels, op).default, CALLS[op])


@pytest.mark.parametrize('op', OPERATORS)
def test_one_signature_everywhere(op):
    """The schema and the public function share argument names, the check and the reference theirs: with the numbers of the
    schema as one object, and no other difference."""
    schema = getattr(torch.ops.bnn_kernels, op).default._schema
    names = [argument.name for argument in schema.arguments]
    assert list(inspect.signature(getattr(bk, op)).parameters) == names
    described = inspect.signature(getattr(checks, op)).parameters
    assert list(inspect.signature(getattr(reference, op)).parameters) == list(described)
    objects = [parameter for parameter in described.values() if parameter.name not in names]
    assert [parameter.name for parameter in objects] == (['geometry'] if 'stride' in names else [])
    fields = {field for parameter in objects for field in parameter.annotation._fields}
    assert [name for name in names if name not in fields] == [name for name in described if name != 'geometry']


@pytest.mark.parametrize('backend', dispatch.BACKENDS.values())
def test_backends_take_what_checks_take(backend):
    module, _, name = backend.partition(':')
    kind = getattr(pytest.importorskip(module, exc_type=ImportError), name)
    for op in [name for name in vars(checks) if name.startswith(('binary_', 'pack_', 'stem', 'downsample'))]:
        function = getattr(kind, op, None)
        parameters = [] if function is None else list(inspect.signature(function).parameters.values())
        if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters) or function is None:
            continue  # the engine's: `cpu.backend.wherever` has the names of the checks
        own = [parameter.name for parameter in parameters if parameter.name != 'self']
        assert own == list(inspect.signature(getattr(checks, op)).parameters)


# --- errors --------------------------------------------------------------------------------------------------

def words(*shape, device='cpu'):
    return torch.zeros(shape, dtype=torch.int32, device=device)


IMAGE, KERNEL = words(1, 5, 6, 2), words(4, 3, 3, 2)  # 40 channels


@pytest.mark.parametrize(('call', 'error', 'sentence'), [
    (lambda: bk.pack_activations(torch.ones(2, 3)), ValueError, r'\[N, C, H, W\], got \[2, 3\]: use pack_features'),
    (lambda: bk.pack_activations(words(1, 2, 3, 4)), TypeError, 'x must be float32, .* got torch.int32: convert'),
    (lambda: bk.pack_activations(X, groups=3), ValueError, 'groups=3 does not divide channels=10: choose'),
    (lambda: bk.pack_activations(X, 0.5), TypeError, 'threshold must be a tensor or None, got float: wrap'),
    (lambda: bk.pack_activations(X, torch.ones(10).int()), TypeError, 'must be floating point, got torch.int32: convert'),
    (lambda: bk.pack_activations(X, torch.ones(1, 10, 1, 1)), ValueError, r'\[10\], got \[1, 10, 1, 1\]: flatten'),
    (lambda: bk.pack_activations(X, torch.ones(10, device='meta')), ValueError, 'x is on cpu and threshold on meta: move'),
    (lambda: bk.pack_features(torch.tensor(1.0)), ValueError, 'without dimensions: give'),
    (lambda: bk.pack_features(X, torch.ones(10)), ValueError, r'one per channel, \[7\], got \[10\]'),
    (lambda: bk.binary_conv2d(X, KERNEL, 40), TypeError, 'x_words must be int32 words, got torch.float32: pack it with'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL.long(), 40), TypeError, 'w_words must be int32 .* pack it with pack_weight'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 65), ValueError, 'x_words has 2 words .* 65 channels in 1 group.* take 3: pack'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, groups=2), ValueError, 'w_words has 2 words .* in 2 group.* take 1: pack'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, groups=3), ValueError, 'groups=3 does not divide channels=40'),
    (lambda: bk.binary_conv2d(words(1, 5, 6, 3), words(4, 1, 1, 1), 96, groups=3), ValueError, 'the 4 output channels'),
    (lambda: bk.binary_conv2d(IMAGE[0], KERNEL, 40), ValueError, r'x_words must be \[N, H, W, groups \* words\].*: pack'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL.to('meta'), 40), ValueError, 'x_words is on cpu and w_words on meta: move'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, pad_value=2), ValueError, 'pad_value must be 0, -1 or 1, got 2'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, pad_value=0.5), ValueError, 'pad_value must be 0, -1 or 1, got 0.5'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, stride=(1, 2, 3)), ValueError, r'stride must be .* got \[1, 2, 3\]'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, stride=0), ValueError, 'stride must be .* at least 1'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, padding=-1), ValueError, 'padding must be .* at least 0'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, dilation=0), ValueError, 'dilation must be .* at least 1'),
    (lambda: bk.binary_conv2d(IMAGE, KERNEL, 40, dilation=3), ValueError, r'empty \(-1 x 0\) .* 5 x 6 .* 3 x 3: enlarge'),
    (lambda: bk.binary_conv_transpose2d(IMAGE, KERNEL, 40, output_padding=1), ValueError, 'output_padding=.* smaller than'),
    (lambda: bk.binary_conv_transpose2d(IMAGE, KERNEL, 40, padding=4), ValueError, r'empty \(-1 x 0\)'),
    (lambda: bk.binary_linear(IMAGE, KERNEL, 40), ValueError, r'w_words \[O, words\], got .*: pack with'),
    (lambda: bk.binary_linear(IMAGE, words(4, 1), 40), ValueError, 'w_words has 1 words .* take 2: pack it with pack_weight'),
])
def test_errors_say_what_to_do(call, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        call()
    assert '\n' not in str(caught.value)


def test_sums_beyond_float32_are_refused():
    features = 2**24
    row = words(1, features // 32)
    assert bk.binary_linear(row, row, features - 1).item() == features - 1
    with pytest.raises(ValueError, match='16777216 terms, the limit is'):
        bk.binary_linear(row, row, features)
    side = 2**9
    with pytest.raises(ValueError, match='16777216 terms, the limit is'):
        bk.binary_conv2d(words(1, side, side, 2), words(1, side, side, 2), features // side**2)


def test_meta_tensors_are_checked_too():
    y = bk.binary_conv2d(IMAGE.to('meta'), KERNEL.to('meta'), 40, padding=1)
    assert y.shape == (1, 4, 5, 6)
    assert math.prod(y.stride()) == math.prod(torch.empty(y.shape).to(memory_format=torch.channels_last).stride())
    with pytest.raises(ValueError, match='pad_value'):
        bk.binary_conv2d(IMAGE.to('meta'), KERNEL.to('meta'), 40, pad_value=3)
