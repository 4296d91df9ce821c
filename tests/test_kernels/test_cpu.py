"""The compiled engine: each instruction set against the reference, prepared weights, the choice of the instruction set.

AMX has test_amx.py; threads, forks and bad input are tested for all backends in files of their own.
"""

import os
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bnn_kernels as bk
from bnn_kernels import cpu
from bnn_kernels.cpu import engine, lowering
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.epilogue import ACTS, silu
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.reference import Reference

from . import cases

pytestmark = pytest.mark.sanitize
CPU, REFERENCE = Cpu(), Reference()
try:
    AVAILABLE = engine.available_isas()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)
ISAS = [isa for isa in AVAILABLE if not isa.startswith('amx')]


def examples(number: int):
    return settings(deadline=None, max_examples=number)


def agree(op: str, call: dict, memory_format=torch.contiguous_format) -> bool:
    """Whether every instruction set returns what the reference returns."""
    expected = getattr(REFERENCE, op)(**call)
    for isa in ISAS:
        with cpu.set_isa(isa):
            if not cases.same(getattr(CPU, op)(**call), expected, memory_format):
                return False
    return True


# --- exactness: 2 000 cases and more for each instruction set --------------------------------------------------

@examples(900)
@given(call=cases.convolutions())
def test_binary_conv2d(call):
    assert agree('binary_conv2d', call, torch.channels_last)


@examples(60)
@given(call=cases.convolutions(st.sampled_from([1, 64, 130, 500]), st.sampled_from([16, 33, 129]), image=40, batch=1))
def test_images_of_several_blocks(call):
    assert agree('binary_conv2d', call, torch.channels_last)


@examples(300)
@given(call=cases.transposed())
def test_binary_conv_transpose2d(call):
    assert agree('binary_conv_transpose2d', call, torch.channels_last)


@examples(300)
@given(call=cases.blocks())
def test_binary_block2d(call):
    expected = cases.run_block(REFERENCE, call)
    for isa in ISAS:
        with cpu.set_isa(isa):
            for result, right in zip(cases.run_block(CPU, call), expected, strict=True):
                assert torch.equal(result, right)


@examples(200)
@given(call=cases.signs())
def test_binary_conv2d_sign(call):
    assert agree('binary_conv2d_sign', call)


@examples(150)
@given(lead=st.lists(st.integers(0, 9), max_size=3), features=cases.CHANNELS, outputs=cases.OUTPUTS, seed=st.integers(0, 99))
def test_binary_linear(lead, features, outputs, seed):
    random = np.random.default_rng(seed)
    assert agree('binary_linear', dict(x_words=cases.words(random, *lead, features),
                                       w_words=cases.words(random, outputs, features), features=features))


def floats(random: np.random.Generator, shape, dtype: torch.dtype) -> torch.Tensor:
    """Values that meet thresholds exactly now and then, both zeros, both infinities, NaN."""
    values = random.choice([-2, -1, -0.5, -0.0, 0.0, 0.5, 1, 1e-30, 3e38, np.inf, -np.inf, np.nan], shape)
    return torch.from_numpy(np.asarray(values, np.float32)).to(dtype)


@examples(250)
@given(per_group=cases.CHANNELS, groups=st.integers(1, 3), image=cases.pairs(0, 12), kind=st.sampled_from(cases.STREAMS),
       threshold=st.sampled_from(['none', 'one', 'all']), threshold_kind=st.sampled_from(cases.STREAMS),
       memory=st.sampled_from(['planes', 'rows', 'neither']), seed=st.integers(0, 99))
def test_pack_activations(per_group, groups, image, kind, threshold, threshold_kind, memory, seed):
    random, channels = np.random.default_rng(seed), per_group * groups
    x = floats(random, (2, channels, *image), kind)
    if memory == 'rows':
        x = x.contiguous(memory_format=torch.channels_last)
    elif memory == 'neither':
        x = x.transpose(2, 3)
    size = {'none': None, 'one': (), 'all': (channels,)}[threshold]
    tau = None if size is None else floats(random, size, threshold_kind)
    assert agree('pack_activations', dict(x=x, threshold=tau, groups=groups))


@examples(100)
@given(lead=st.lists(st.integers(0, 5), max_size=3), features=cases.CHANNELS, kind=st.sampled_from(cases.STREAMS),
       seed=st.integers(0, 99))
def test_pack_features(lead, features, kind, seed):
    random = np.random.default_rng(seed)
    call = dict(x=floats(random, (*lead, features), kind), threshold=floats(random, features, torch.float32))
    assert agree('pack_features', call)


@examples(150)
@given(call=cases.downsamples())
def test_downsample2d(call):
    for isa in ISAS:
        with cpu.set_isa(isa):
            result = CPU.downsample2d(**call)
        assert result.is_contiguous(memory_format=torch.channels_last)
        cases.check_downsample(result, call)


@pytest.mark.parametrize('act', ACTS)
@pytest.mark.parametrize('dtype', cases.STREAMS)
def test_special_floats_pass_the_epilogue(act, dtype):
    """NaN, infinities, subnormal numbers and values that round up to infinity, in whole vectors and behind them."""
    values = [float('nan'), float('inf'), -float('inf'), -0.0, 1e-45, -2.0, 3.4e38, 65519, 65520, 6e-8, 3e-8, 2.9e-39, 1.0039]
    width = 45
    shortcut = torch.tensor(values * 4)[:width].reshape(1, width, 1, 1)
    zeros = torch.zeros(width)
    epilogue = bk.Epilogue(zeros, zeros, act, slope=zeros + 0.5 if act == 'prelu' else None, threshold=zeros + 1e-45)
    call = dict(x_words=torch.zeros(1, 1, 1, 1).int(), w_words=torch.zeros(width, 1, 1, 1).int(),
                geometry=Conv2dGeometry(1, width, 1), epilogue=epilogue, shortcut=shortcut, dtype=dtype, pack=True, keep=True)
    words, stream = REFERENCE.binary_block2d(**call)
    for isa in ISAS:
        with cpu.set_isa(isa):
            got_words, got = CPU.binary_block2d(**call)
        assert torch.equal(got_words, words)
        assert torch.equal(got.isnan(), stream.isnan())
        assert torch.equal(got.nan_to_num(7), stream.nan_to_num(7))


def test_silu_is_that_of_torch():
    x = torch.linspace(-87, 88, 200_001)
    expected = torch.nn.functional.silu(x.double())
    assert bool(((silu(x).double() - expected).abs() <= 3 * 2**-24 * expected.abs()).all())
    assert silu(torch.tensor([float('nan')])).isnan()


@pytest.mark.parametrize('isa', ISAS)
@pytest.mark.parametrize('terms', [2**24 - 1, 2**20])
def test_the_longest_sums(isa, terms):
    """One sum of as many terms as are allowed, all of one sign and of the other."""
    x = torch.full((1, -(-terms // 32)), -1, dtype=torch.int32)
    x[0, -1] = 2**(terms % 32) - 1 if terms % 32 else -1
    with cpu.set_isa(isa):
        assert CPU.binary_linear(x, x, terms).item() == terms
        assert CPU.binary_linear(x, torch.zeros_like(x), terms).item() == -terms


# --- prepared weights ----------------------------------------------------------------------------------------

def linear(x, w):
    with bk.set_backend('cpu'):
        return bk.binary_linear(x, w, 64)


def expected(x, w):
    return REFERENCE.binary_linear(x, w, 64)


@pytest.fixture
def words():
    return tuple(torch.randint(-2**31, 2**31 - 1, (rows, 2), dtype=torch.int32) for rows in (3, 5))


@pytest.mark.parametrize('write', [
    lambda w: w.zero_(),
    lambda w: w[2:].fill_(7),
    lambda w: w.copy_(torch.ones_like(w)),
    lambda w: w.view(-1)[3].add_(1),
    lambda w: w.detach().bitwise_not_(),
    lambda w: torch.nn.Module.load_state_dict(module_of(w), {'w': torch.full_like(w, 5)}),
])
def test_a_weight_that_is_written_to_is_prepared_again(words, write):
    x, w = words
    assert torch.equal(linear(x, w), expected(x, w))
    before = w.clone()
    write(w)
    assert not torch.equal(w, before)
    assert torch.equal(linear(x, w), expected(x, w))


def module_of(w: torch.Tensor) -> torch.nn.Module:
    module = torch.nn.Module()
    module.register_buffer('w', w)
    return module


def test_a_weight_made_in_inference_mode_is_never_stale(words):
    x, _ = words
    with torch.inference_mode():
        w = torch.ones(5, 2, dtype=torch.int32)
        for value in 1, 2, 3:
            w.fill_(value)
            assert torch.equal(linear(x, w), expected(x, w))


def test_a_weight_is_prepared_once_whatever_view_it_comes_as(words, monkeypatch):
    x, w = words
    count = []
    prepare = engine.library().bnn_prepare
    monkeypatch.setattr(engine.library(), 'bnn_prepare', lambda *arguments: count.append(1) or prepare(*arguments))
    conv = dict(geometry=Conv2dGeometry(64, 5, 1))
    for _ in range(3):
        CPU.binary_conv2d(x_words=x.reshape(1, 1, 3, 2), w_words=w.reshape(5, 1, 1, 2), **conv)
    with torch.inference_mode():
        CPU.binary_conv2d(x_words=x.reshape(1, 1, 3, 2), w_words=w.reshape(5, 1, 1, 2), **conv)
    assert len(count) == 1


def test_prepared_weights_are_dropped_with_their_weight(words):
    x, w = words
    linear(x, w)
    known = len(lowering.prepared_weights.entries)
    for _ in range(20):
        linear(x, torch.randint(0, 9, (5, 2), dtype=torch.int32))
        assert len(lowering.prepared_weights.entries) == known


def test_nothing_of_a_weight_outlives_it(words):
    """Operators that are shared keep what they made of the last weight: not longer than the weight."""
    x, _ = words
    weight = torch.randint(0, 9, (5, 2), dtype=torch.int32)
    linear(x, weight)
    *_, (_, _, prepared, _) = lowering.prepared_weights.entries.values()
    made = weakref.ref(prepared)
    del prepared
    assert made() is not None
    del weight
    assert made() is None


def test_two_weights_in_one_storage(words):
    x, _ = words
    both = torch.randint(-2**31, 2**31 - 1, (10, 2), dtype=torch.int32)
    for w in both[:5], both[5:], both[::2], both[:5]:
        assert torch.equal(linear(x, w), expected(x, w))


def test_a_downsample_weight_that_is_written_to():
    x, weight, bias = torch.randn(1, 3, 4, 4), torch.randn(5, 3), torch.zeros(5)
    for _ in range(2):
        torch.testing.assert_close(CPU.downsample2d(x, weight, bias, 2), REFERENCE.downsample2d(x, weight, bias, 2))
        weight.mul_(-3)


# --- the choice of the instruction set -----------------------------------------------------------------------

def test_set_isa_until_the_end_of_a_with_statement():
    before = cpu.isa()
    with cpu.set_isa('portable'):
        assert cpu.isa() == 'portable'
    assert cpu.isa() == before


def test_an_unknown_instruction_set_names_the_nearest():
    with pytest.raises(ValueError, match=r"Unknown instruction set 'avx51' .* did you mean 'avx512'\? Known are portable"):
        cpu.set_isa('avx51')


def backends(**environment) -> str:
    code = 'import bnn_kernels as bk; from bnn_kernels import cpu; print(bk.available_backends()["cpu"]); print(cpu.isa())'
    run = subprocess.run([sys.executable, '-c', code], env=os.environ | environment, capture_output=True, text=True)
    return run.stdout + run.stderr


@pytest.mark.parametrize('isa', ISAS)
def test_the_environment_variable_forces_one(isa):
    assert backends(BNN_KERNELS_CPU_ISA=isa) == f'available\n{isa}\n'


@pytest.mark.skipif('amx' in AVAILABLE, reason='this processor has AMX')
def test_one_that_the_processor_lacks_is_one_sentence():
    sentence = 'this processor cannot run amx: set_isa and BNN_KERNELS_CPU_ISA take portable'
    assert backends(BNN_KERNELS_CPU_ISA='amx').startswith(f'RuntimeError: {sentence}')
    with pytest.raises(RuntimeError, match=sentence):
        cpu.set_isa('amx')


def test_ceilings_are_measured():
    for isa in ISAS:
        rates = cpu.ceilings(isa)
        assert rates['binary'] > rates['float'] > 0


@pytest.mark.parametrize('transposed', [False, True])
def test_calls_of_equal_words_differ_in_their_settings(transposed):
    """Geometries and prepared weights are kept: each setting makes another one, although the words are the same tensors."""
    random = np.random.default_rng(0)
    x, w = cases.words(random, 2, 9, 9, 40), cases.words(random, 6, 3, 3, 40)
    base = Conv2dGeometry(40, 6, 3, padding=2)
    changes = [dict(), dict(channels=48), dict(stride=(1, 2)), dict(stride=(2, 1)), dict(padding=(1, 2)), dict(padding=(2, 1)),
               dict(dilation=(2, 1)), dict(dilation=(1, 2)), dict()]
    if transposed:
        op, base = 'binary_conv_transpose2d', base._replace(output_padding=(0, 0), stride=(2, 2))
        changes += [dict(output_padding=(1, 0)), dict(output_padding=(0, 1)), dict()]
    else:
        op = 'binary_conv2d'
        changes += [dict(pad_value=1), dict(pad_value=-1), dict()]
    for isa in AVAILABLE:
        with cpu.set_isa(isa):
            for change in changes:
                call = x, w, base._replace(**change)
                assert torch.equal(getattr(CPU, op)(*call), getattr(REFERENCE, op)(*call)), (isa, change)
