"""Bad input to every backend of the CPU: one sentence, no crash. Unusual but good input: the reference's result."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels.cpu import engine

from . import cases

pytestmark = pytest.mark.sanitize
FAR = 2**46  # elements: more bytes than a process can address
ISAS = engine.available_isas() if bk.available_backends()['cpu'] == 'available' else []
BACKENDS = [f'cpu {isa}' for isa in ISAS] + [name for name in ('numba', 'reference')
                                             if bk.available_backends()[name] == 'available']
RAISED = (TypeError, ValueError, RuntimeError)
EPILOGUE = bk.Epilogue(torch.ones(4), torch.ones(4), 'prelu', torch.ones(4), torch.ones(4), torch.ones(4), torch.ones(4))
CALLS = {
    'pack_activations': dict(x=torch.randn(2, 6, 5, 4), threshold=torch.randn(6), groups=2),
    'pack_features': dict(x=torch.randn(3, 7), threshold=None),
    'binary_linear': dict(x_words=torch.ones(3, 2).int(), w_words=torch.ones(4, 2).int(), features=40),
}
CONV = dict(x_words=torch.ones(2, 5, 6, 4).int(), w_words=torch.ones(4, 3, 2, 2).int(), channels=80, stride=[1, 2],
            padding=[1, 0], dilation=[1, 1], groups=2)
CALLS['binary_conv2d'] = CONV | dict(pad_value=-1)
CALLS['binary_conv_transpose2d'] = CONV | dict(output_padding=[0, 1])
CALLS['binary_conv2d_sign'] = CALLS['binary_conv2d'] | dict(threshold=torch.zeros(4).int(), flip=torch.ones(4).bool(),
                                                            out_groups=2)
CALLS['binary_block2d'] = CALLS['binary_conv2d'] | EPILOGUE._asdict() | dict(
    shortcut=torch.randn(2, 4, 5, 3), dtype=torch.bfloat16, pack=True, keep=True)
CALLS['pack_normalized'] = dict(x=torch.randn(3, 7), mean=torch.randn(3), std=torch.rand(3), threshold=torch.randn(7),
                                flip=torch.ones(7).bool())
CALLS['binary_lstm'] = dict(
    x=torch.randn(3, 2, 2, 160), w_words=torch.ones(2, 160, 2).int(), scale=torch.randn(2, 160), scale_x=torch.randn(2, 160),
    bias=torch.randn(2, 160), threshold=torch.randn(2, 40), eps=1e-5, gates='binary', candidate='sign', readout='cell',
    feedback='and', h_words=torch.ones(2, 2, 2).int(), cell=torch.zeros(2, 2, 40).to(torch.int8), lengths=torch.tensor([3, 1]),
    pack=True, keep=True)
CALLS['binary_attention'] = dict(
    q_words=torch.ones(2, 5, 3, 2).int(), k_words=torch.ones(2, 40, 3, 2).int(), v_words=torch.ones(2, 3, 8, 2).int(),
    head_dim=48, rules=['bool', 'elastic'], limit=torch.rand(2, 3).double(), table=bk.attention_table(0.1, 48),
    scale=torch.randn(2, 3), mask_words=torch.ones(2, 5, 2).int())
CALLS['downsample2d'] = dict(x=torch.randn(1, 6, 5, 4), weight=torch.randn(3, 6), bias=torch.randn(3), pool=2)
CALLS['stem2d'] = EPILOGUE._asdict() | dict(
    x=torch.randn(2, 3, 9, 8), weight=torch.randn(4, 3, 3, 2), stride=[1, 2], padding=[1, 0], window=[3, 2],
    window_stride=[2, 1], window_padding=[1, 0], dtype=torch.bfloat16, pack=True)
ROUNDED = ('downsample2d', 'stem2d')  # they sum floats in any order


@pytest.fixture(params=BACKENDS)
def backend(request):
    name, _, isa = request.param.partition(' ')
    with bk.set_backend(name), engine.set_isa(isa or None):
        yield name


def call(op: str, arguments: dict):
    """The registered operator, as exported programs call it."""
    function = getattr(torch.ops.bnn_kernels, op).default
    return function(*(arguments[argument.name] for argument in function._schema.arguments))


def outcome(op: str, arguments: dict) -> tuple[torch.Tensor, ...] | str:
    """Results, or the sentence that was raised."""
    try:
        results = call(op, arguments)
    except RAISED as error:
        text = str(error).partition('\nException raised from')[0]  # torch adds its C++ stack to some
        assert re.fullmatch(r'[^\n]{9,500}', text), text
        return text
    return results if isinstance(results, tuple) else (results,)


def same_outcome(backend: str, op: str, arguments: dict) -> str | None:
    """The backend returns what the reference does, or raises where it does: asserted. Returns the sentence or None."""
    got = outcome(op, arguments)
    if isinstance(got, str) and 'does not implement' in got:
        return got
    with bk.set_backend('reference'):
        expected = outcome(op, arguments)
    if isinstance(expected, str):
        assert isinstance(got, str)
        return got
    assert not isinstance(got, str), got
    for result, other in zip(got, expected, strict=True):
        torch.testing.assert_close(result, other, **({} if op in ROUNDED else dict(rtol=0, atol=0)))
    return None


def misaligned(x: torch.Tensor) -> torch.Tensor:
    """The same values one byte behind an aligned address."""
    raw = bytearray(x.numel() * x.element_size() + 1)
    raw[1:] = x.contiguous().view(torch.uint8).numpy().tobytes()
    return torch.frombuffer(raw, dtype=x.dtype, offset=1).view(x.shape)


def tensors(op: str) -> list[str]:
    return [name for name, value in CALLS[op].items() if isinstance(value, torch.Tensor)]


SPOILT = {
    'dtype': lambda x: x.to(torch.int16 if x.dtype != torch.int32 else torch.int64),
    'complex': lambda x: x.to(torch.complex64),
    'meta': lambda x: x.to('meta'),
    'no dimensions': lambda x: x.new_zeros(()),
    'one dimension more': lambda x: x[None],
    'a longer last dimension': lambda x: torch.cat([x, x], -1),
    'nothing in the last dimension': lambda x: x[..., :0],
    'nothing in the first dimension': lambda x: x[:0],
    'sparse': lambda x: x.to_sparse(),
    'beyond memory': lambda x: x.new_zeros(()).expand(FAR, *x.shape[1:]),
}


@pytest.mark.parametrize('how', SPOILT)
def test_one_spoilt_tensor(backend, how):
    for op in CALLS:
        for name in tensors(op):
            text = same_outcome(backend, op, CALLS[op] | {name: SPOILT[how](CALLS[op][name])})
            if how in ('dtype', 'complex', 'sparse') and text is not None:
                assert name in text
            if how in ('dtype', 'complex', 'sparse', 'no dimensions', 'beyond memory'):
                assert text is not None or name == 'threshold'


SPOILT_NUMBERS = {
    'channels': [0, -1, 79, 81, 2**31, 2**62], 'features': [0, -40, 65, 2**62], 'groups': [0, -1, 3, 2**40],
    'pad_value': [2, -2, 2**40], 'out_groups': [0, -2, 3, 2**40], 'pool': [0, -1, 2**31, 2**62],
    'stride': [[0, 1], [1], [1, 1, 1], [1, 2**31], [2**62, 1], [-1, 1]],
    'padding': [[-1, 0], [0], [2**31, 0], [0, 2**62]],
    'dilation': [[0, 1], [1], [1, 2**31], [9, 1]],
    'window': [[0, 1], [1], [2**31, 1], [9, 9]], 'window_stride': [[0, 1], [1], [1, 2**62]],
    'window_padding': [[-1, 0], [2, 0], [1]],
    'output_padding': [[-1, 0], [2, 0], [0, 2**62]],
    'head_dim': [0, -1, 47, 65, 2**31, 2**62], 'eps': [-1.0, float('nan'), float('inf'), 0.0], 'gates': ['', 'soft'],
    'candidate': ['sigmoid', 'tanh'], 'readout': ['h', 'tanh'], 'feedback': ['', 'h'],
    'rules': [[], ['bool'], ['bool', 'bool'], ['elastic', ''], ['bool'] * 3],
    'act': ['', 'tanh', 'PRELU', 'relu'], 'dtype': [torch.float64, torch.int8],
}


@pytest.mark.parametrize('name', SPOILT_NUMBERS)
def test_one_spoilt_number(backend, name):
    for op, arguments in CALLS.items():
        for value in SPOILT_NUMBERS[name] if name in arguments else ():
            same_outcome(backend, op, arguments | {name: value})


@pytest.mark.parametrize(('op', 'change'), [
    ('binary_conv2d', dict(padding=[2**24, 2**24])),
    ('binary_conv_transpose2d', dict(stride=[2**24, 2**24], output_padding=[0, 0])),
    ('binary_conv_transpose2d', dict(stride=[2**31 - 1, 2**31 - 1], output_padding=[0, 0])),
    ('binary_block2d', dict(padding=[2**31 - 1, 2**31 - 1], shortcut=None)),
])
def test_outputs_beyond_memory(backend, op, change):
    assert isinstance(outcome(op, CALLS[op] | change), str)


def test_sizes_beyond_32_bits_are_counted(backend):
    """Nothing is computed: shapes alone, by the fake kernels."""
    words = torch.empty(1, 2**20, 2**20, 1, dtype=torch.int32, device='meta')
    weight = torch.empty(2, 3, 3, 1, dtype=torch.int32, device='meta')
    assert bk.binary_conv2d(words, weight, 5, padding=1).shape == (1, 2, 2**20, 2**20)
    assert bk.binary_conv_transpose2d(words, weight, 5, stride=2**9).shape[2] == (2**20 - 1) * 2**9 + 3
    assert bk.pack_features(torch.empty(2**35, 33, device='meta')).shape == (2**35, 2)


GOOD = {
    'strided': lambda x: torch.stack([x, x], -1)[..., 0],
    'reversed dimensions': lambda x: x.permute(*range(x.dim())[::-1]).contiguous().permute(*range(x.dim())[::-1]),
    'behind other data': lambda x: torch.cat([x.new_ones(3), x.flatten()])[3:].view(x.shape),
    'misaligned': misaligned,
    'with a gradient': lambda x: x.clone().requires_grad_() if x.is_floating_point() else x,
    'in inference mode': torch.inference_mode()(torch.clone),
}


@pytest.mark.parametrize('how', GOOD)
def test_unusual_memory_is_the_same(backend, how):
    for op, arguments in CALLS.items():
        for name in tensors(op):
            with torch.no_grad():
                text = same_outcome(backend, op, arguments | {name: GOOD[how](arguments[name])})
                assert text is None or 'does not implement' in text


@settings(deadline=None, max_examples=60)
@given(call_=st.one_of(cases.convolutions(), cases.signs(), cases.transposed()), data=st.data())
def test_random_integers_for_any_number(call_, data):
    """Any number anywhere, on the backend that is chosen by itself: a result or a sentence."""
    op = ('binary_conv2d_sign' if 'threshold' in call_ else
          'binary_conv_transpose2d' if call_['geometry'].transposed else 'binary_conv2d')
    schema = getattr(torch.ops.bnn_kernels, op).default._schema
    call_ = {argument.name: cases.flat(call_)[argument.name] for argument in schema.arguments}
    numbers = [name for name, value in call_.items() if isinstance(value, int | tuple)]
    name = data.draw(st.sampled_from(numbers))
    # Nothing between: a large result that fits into memory would be computed.
    wild = st.one_of(st.integers(-2**63, 40), st.integers(2**45, 2**63 - 1))
    value = data.draw(st.tuples(wild, wild) if isinstance(call_[name], tuple) else wild)
    outcome(op, call_ | {name: value})
