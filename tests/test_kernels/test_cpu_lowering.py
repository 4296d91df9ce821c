"""Prepared operators of the engine: what they give, what they keep alive, and what they notice."""

import copy
import gc
import pickle
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels.cpu import available_isas, engine, lowering
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.cpu.calls import Call
from bnn_kernels.geometry import Conv2dGeometry, Stem2dGeometry
from bnn_kernels.ops import COME
from bnn_kernels.reference import Reference

from . import cases

pytestmark = [pytest.mark.sanitize,
              pytest.mark.skipif(bk.available_backends()['cpu'] != 'available', reason='the engine was not compiled')]
CPU, REFERENCE = Cpu(), Reference()
INPUTS = {'binary_conv2d': ['x_words'], 'binary_conv_transpose2d': ['x_words'], 'binary_linear': ['x_words'],
          'binary_conv2d_sign': ['x_words'], 'binary_block2d': ['x_words', 'shortcut', 'out'],
          'folded_block2d': ['x_words', 'shortcut'], 'pack_activations': ['x'], 'pack_features': ['x'],
          'downsample2d': ['x'], 'stem2d': ['x']}


@pytest.fixture(autouse=True)
def on_the_engine():
    with bk.set_backend('cpu'):
        yield


def parts(op: str, call: dict) -> tuple[dict, dict]:
    """What is bound, and what comes with each call."""
    return {k: v for k, v in call.items() if k not in INPUTS[op]}, {k: call[k] for k in INPUTS[op]}


def tensors_of(call: dict) -> list[torch.Tensor]:
    """Of all arguments, those of an epilogue too."""
    return [value for value in cases.flat(call).values() if isinstance(value, torch.Tensor)]


def tensors_apart(call: dict) -> tuple[dict, dict]:
    """As registered operators do it: numbers are bound, tensors come."""
    inputs = {k: v for k, v in call.items() if isinstance(v, COME)}
    return {k: v for k, v in call.items() if k not in inputs}, inputs


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-2**31, 2**31 - 1, shape, dtype=torch.int32)


def image(*shape: int) -> torch.Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def example(op: str) -> dict:
    """One call that the engine binds, of 40 channels to 6."""
    geometry = Conv2dGeometry(64, 6, 3, padding=1)
    conv = dict(x_words=words(2, 5, 4, 2), w_words=words(6, 3, 3, 2), geometry=geometry)
    scale, bias, *others = torch.randn(6, 6)
    epilogue = bk.Epilogue(scale, bias, 'prelu', *others)
    return {
        'binary_conv2d': conv,
        'binary_conv_transpose2d': conv | dict(geometry=geometry._replace(stride=(2, 1), output_padding=(1, 0))),
        'binary_linear': dict(x_words=words(3, 5, 2), w_words=words(6, 2), features=64),
        'pack_features': dict(x=torch.randn(3, 2, 40), threshold=torch.randn(40)),
        'binary_conv2d_sign': conv | dict(threshold=torch.randint(-9, 9, (6,)).int(), flip=torch.rand(6) < 0.5, out_groups=1),
        'binary_block2d': conv | dict(epilogue=epilogue, shortcut=image(2, 6, 5, 4), dtype=torch.float32, pack=True, keep=True,
                                      out=None),
        'folded_block2d': conv | dict(epilogue=epilogue, shortcut=image(2, 6, 5, 4), dtype=torch.float32, pack=True, keep=True,
                                      fold=2),
        'pack_activations': dict(x=image(2, 40, 5, 4), threshold=torch.randn(40), groups=1),
        'downsample2d': dict(x=image(2, 40, 5, 4), weight=torch.randn(6, 40), bias=torch.randn(6), pool=2),
        'stem2d': dict(
            x=image(2, 3, 9, 8), weight=torch.randint(-3, 4, (6, 3, 3, 3)).float(), epilogue=epilogue, dtype=torch.float32,
            pack=True, geometry=Stem2dGeometry(3, 6, 3, 2, 1, window=3, window_stride=2, window_padding=1)),
    }[op]


def expect(op: str, result, call: dict) -> None:
    if op == 'downsample2d':
        return cases.check_downsample(result, call)
    if op == 'stem2d':  # sums in any order
        assert torch.equal(result[0], REFERENCE.pack_activations(result[1], call['epilogue'].threshold, 1))
        return torch.testing.assert_close(result[1], REFERENCE.stem2d(**call)[1])
    expected = getattr(REFERENCE, op)(**call)
    both = zip(result, expected, strict=True) if isinstance(expected, tuple) else [(result, expected)]
    for one, other in both:
        assert torch.equal(one, other)
    return None


every_op = pytest.mark.parametrize('op', INPUTS)


def test_every_operator_that_is_bound_is_tested():
    assert set(INPUTS) == set(lowering.LOWERINGS)


@every_op
def test_the_engine_binds_it(op):
    fixed, inputs = parts(op, example(op))
    assert isinstance(CPU.bind(op, fixed, inputs), Call)


# --- the same results ----------------------------------------------------------------------------------------

@st.composite
def linears(draw):
    """Arguments of binary_linear, with rows."""
    features, lead = draw(cases.CHANNELS), draw(st.lists(st.integers(1, 5), max_size=3))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return dict(x_words=cases.words(random, *lead, features), w_words=cases.words(random, draw(cases.OUTPUTS), features),
                features=features)


@pytest.mark.parametrize(('op', 'calls'), [
    ('binary_conv2d', cases.convolutions()), ('binary_conv_transpose2d', cases.transposed()), ('binary_linear', linears()),
    ('binary_conv2d_sign', cases.signs()), ('binary_block2d', cases.blocks()), ('downsample2d', cases.downsamples())])
@pytest.mark.parametrize('all_come', [False, True], ids=['weights are bound', 'weights come with calls'])
def test_results(op, calls, all_come):
    @settings(max_examples=100)
    @given(call=calls)
    def run(call):
        fixed, inputs = tensors_apart(call) if all_come else parts(op, call)
        prepared_op = bk.PreparedOp(op, **fixed)
        for _ in range(2):
            own = dict(inputs)
            if own.get('out') is not None:  # in place
                own['out'] = own['shortcut'] = own['out'].clone(memory_format=torch.preserve_format)
            expect(op, prepared_op(**own), call)

    run()


@settings(max_examples=60)
@given(channels=cases.CHANNELS, size=cases.pairs(1, 6), planar=st.booleans(), kind=st.sampled_from(cases.STREAMS))
def test_results_of_packing(channels, size, planar, kind):
    x = torch.randn(2, channels, *size).to(kind, memory_format=torch.contiguous_format if planar else torch.channels_last)
    for threshold in (None, torch.randn(channels)):
        pack = bk.PreparedOp('pack_activations', threshold=threshold, groups=1)
        assert torch.equal(pack(x=x), REFERENCE.pack_activations(x, threshold, 1))


@every_op
def test_inputs_of_another_kind_and_back(op):
    call = example(op)
    fixed, inputs = parts(op, call)
    prepared_op = bk.PreparedOp(op, **fixed)
    halves = {k: None if v is None else v[:1] for k, v in inputs.items()}
    for own in (inputs, halves, inputs):
        expect(op, prepared_op(**own), fixed | own)


@every_op
def test_inputs_where_no_number_may_start(op):
    def shifted(x):
        room = torch.empty(x.numel() * x.element_size() + 64, dtype=torch.uint8)
        to = room[1:x.numel() * x.element_size() + 1]
        to.numpy()[:] = torch.as_strided(x, (x.numel(),), (1,)).view(torch.uint8).numpy()
        return torch.frombuffer(to.numpy(), dtype=x.dtype).as_strided(x.shape, x.stride())

    call = example(op)
    fixed, inputs = parts(op, call)
    odd = {k: None if v is None else shifted(v) for k, v in inputs.items()}
    prepared_op = bk.PreparedOp(op, **fixed)
    for own in (inputs, odd):
        expect(op, prepared_op(**own), call)


@every_op
@pytest.mark.parametrize('isa', ['portable', 'neon', 'avx2', 'avx512', 'amx-emulated'])
def test_the_instruction_set_may_change(op, isa):
    if isa not in available_isas():
        pytest.skip(f'this processor has no {isa}')
    call = example(op)
    fixed, inputs = parts(op, call)
    prepared_op = bk.PreparedOp(op, **fixed)
    expect(op, prepared_op(**inputs), call)
    with engine.set_isa(isa):
        expect(op, prepared_op(**inputs), call)
    expect(op, prepared_op(**inputs), call)


# --- memory --------------------------------------------------------------------------------------------------

@every_op
def test_what_it_points_to_stays_alive(op):
    """The caller keeps nothing but the bound operator, and its memory is asked for again."""
    call = example(op)
    _, inputs = parts(op, call)
    mine, _ = parts(op, copy.deepcopy(call))
    prepared_op = bk.PreparedOp(op, **mine)
    prepared_op(**inputs)
    sizes = [v.shape for v in tensors_of(mine)]
    del mine
    gc.collect()
    garbage = [torch.full(shape, 7.0) for shape in sizes for _ in range(100)]
    expect(op, prepared_op(**inputs), call)
    del garbage


@every_op
def test_nothing_outlives_its_weights(op):
    """What is derived from them is no view of them."""
    call = example(op)
    numbers, tensors = tensors_apart(call)
    bk.PreparedOp(op, **numbers)(**tensors)
    del tensors
    storages = [weakref.ref(v.untyped_storage()) for v in call.values() if isinstance(v, torch.Tensor)]
    assert len(storages) > 1 or op in ('pack_activations', 'pack_features')
    del call
    assert [storage() for storage in storages] == [None] * len(storages)


@every_op
def test_memory_that_is_taken_from_under_it(op):
    """`.data = ...` is not seen, as the README says; but what it pointed to is still there."""
    call = example(op)
    fixed, inputs = parts(op, copy.deepcopy(call))
    prepared_op = bk.PreparedOp(op, **fixed)
    prepared_op(**inputs)
    tensors = tensors_of(fixed)
    for tensor in tensors:
        tensor.data = torch.zeros_like(tensor)
    gc.collect()
    garbage = [torch.full(tensor.shape, 7.0) for tensor in tensors for _ in range(100)]
    expect(op, prepared_op(**inputs), call)
    del garbage


@every_op
def test_values_written_in_place_are_noticed(op):
    call = example(op)
    fixed, inputs = parts(op, call)
    prepared_op = bk.PreparedOp(op, **fixed)
    prepared_op(**inputs)
    for value in tensors_of(fixed):
        value.copy_(value.flip(0))
        expect(op, prepared_op(**inputs), call)


@every_op
def test_tensors_of_inference_mode(op):
    """They have no version: what is made of them is made at every call, so that writing to them shows."""
    with torch.inference_mode():
        call = example(op)
        fixed, inputs = parts(op, call)
        prepared_op = bk.PreparedOp(op, **fixed)
        expect(op, prepared_op(**inputs), call)
        for value in tensors_of(fixed):
            value.copy_(value.flip(0))
        expect(op, prepared_op(**inputs), call)


# --- copies and threads --------------------------------------------------------------------------------------

@every_op
@pytest.mark.parametrize('duplicate', [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=['deepcopy', 'pickle'])
def test_copies_have_their_own_tensors(op, duplicate):
    call = example(op)
    fixed, inputs = parts(op, call)
    prepared_op = bk.PreparedOp(op, **fixed)
    prepared_op(**inputs)
    twin = duplicate(prepared_op)
    for value in tensors_of(twin.fixed):
        value.copy_(value.flip(0))
    expect(op, twin(**inputs), twin.fixed | inputs)
    expect(op, prepared_op(**inputs), call)


@every_op
def test_threads(op):
    call = example(op)
    fixed, inputs = parts(op, call)
    prepared_op, results = bk.PreparedOp(op, **fixed), []

    def run():
        results.extend(prepared_op(**inputs) for _ in range(50))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 200
    for result in results:
        expect(op, result, call)


# --- what is refused -----------------------------------------------------------------------------------------

@every_op
def test_devices_that_do_not_fit(op):
    fixed, inputs = parts(op, example(op))
    first = INPUTS[op][0]
    elsewhere = inputs | {first: inputs[first].to('meta')}
    with pytest.raises((ValueError, RuntimeError), match='meta'):
        bk.PreparedOp(op, **fixed)(**elsewhere)
    def to_meta(value):
        if isinstance(value, bk.Epilogue):
            return value._replace(**{name: to_meta(vector) for name, vector in value.vectors().items()})
        return value.to('meta') if isinstance(value, torch.Tensor) else value

    moved = {name: to_meta(value) for name, value in fixed.items()}
    with pytest.raises(ValueError, match='meta'):
        bk.PreparedOp(op, **moved)(**inputs)


@pytest.mark.parametrize('wrong', [dict(dtype=torch.float16), dict(shape=(2, 5, 5, 4)), dict(planar=True)], ids=str)
def test_a_result_that_does_not_fit_its_memory(wrong):
    fixed, inputs = parts('binary_block2d', example('binary_block2d'))
    out = image(*wrong.get('shape', (2, 6, 5, 4))).to(wrong.get('dtype', torch.float32))
    out = out.contiguous() if wrong.get('planar') else out
    with pytest.raises(ValueError, match='out '):
        bk.PreparedOp('binary_block2d', **fixed)(**inputs | dict(out=out))


def test_the_order_of_names_does_not_matter():
    call = example('binary_block2d')
    fixed, inputs = parts('binary_block2d', call)
    block, out = bk.PreparedOp('binary_block2d', **fixed), image(2, 6, 5, 4)
    block(**inputs)
    words, _ = block(x_words=inputs['x_words'], out=out, shortcut=None)  # as many tensors of the same kind, in other places
    expected = REFERENCE.binary_block2d(**call | dict(shortcut=None))
    assert torch.equal(words, expected[0])
    assert torch.equal(out, expected[1])


@pytest.mark.parametrize('op', [op for op in INPUTS if op != 'stem2d'])  # which reads its input as it lies
def test_unusual_memory_goes_the_ordinary_way(op):
    """Every second row of a larger tensor: nothing is bound, nothing is different."""
    call = example(op)
    fixed, inputs = parts(op, call)
    first = INPUTS[op][0]
    wide = inputs[first].repeat_interleave(2, dim=2)[:, :, ::2]
    assert not isinstance(CPU.bind(op, fixed, inputs | {first: wide}), Call)
    expect(op, bk.PreparedOp(op, **fixed)(**inputs | {first: wide}), call)
