"""The AMX kernel: emulated on every machine, its machine code where the processor or a trap handler runs it."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bnn_kernels.cpu import engine, lowering
from bnn_kernels.cpu.backend import Cpu
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.reference import Reference

from . import cases

pytestmark = pytest.mark.sanitize
SOURCES, TESTS = Path(engine.__file__).with_name('src'), Path(__file__).parent
COMPILER = os.environ.get('CXX') or shutil.which('c++') or shutil.which('g++')
CPU, REFERENCE = Cpu(), Reference()
INSTRUCTIONS = {'ldtilecfg', 'sttilecfg', 'tilezero', 'tileloadd', 'tilestored', 'tdpbssd', 'tdpbusd', 'tdpbf16ps'}
try:
    AVAILABLE = engine.available_isas()
except RuntimeError as error:
    pytest.skip(str(error), allow_module_level=True)


@pytest.fixture(params=['amx-emulated', 'amx'])
def isa(request):
    if request.param not in AVAILABLE:
        pytest.skip('this processor has no AMX')
    with engine.set_isa(request.param):
        yield


uses_isa = pytest.mark.usefixtures('isa')


def examples(number: int):
    return settings(deadline=None, max_examples=number)


def words(*shape: int) -> torch.Tensor:
    return torch.randint(-2**31, 2**31 - 1, shape, dtype=torch.int32)


def equal(call: dict, op: str = 'binary_conv2d') -> bool:
    return cases.same(getattr(CPU, op)(**call), getattr(REFERENCE, op)(**call), torch.channels_last)


@uses_isa
@examples(1500)
@given(call=cases.convolutions())
def test_binary_conv2d(call):
    assert equal(call)


@uses_isa
@examples(100)
@given(call=cases.convolutions(st.sampled_from([1, 64, 130]), st.sampled_from([16, 33, 129]), image=40, batch=1))
def test_images_of_several_blocks(call):
    assert equal(call)


@uses_isa
@examples(400)
@given(call=cases.transposed())
def test_binary_conv_transpose2d(call):
    assert equal(call, 'binary_conv_transpose2d')


@uses_isa
@examples(200)
@given(call=cases.blocks())
def test_binary_block2d(call):
    for result, expected in zip(cases.run_block(CPU, call), cases.run_block(REFERENCE, call), strict=True):
        assert torch.equal(result, expected)


@uses_isa
@examples(200)
@given(call=cases.signs())
def test_binary_conv2d_sign(call):
    assert cases.same(CPU.binary_conv2d_sign(**call), REFERENCE.binary_conv2d_sign(**call))


@uses_isa
@examples(200)
@given(call=cases.downsamples())
def test_downsample2d(call):
    cases.check_downsample(CPU.downsample2d(**call), call)


@uses_isa
@pytest.mark.parametrize('pad_value', [0, -1, 1])
@pytest.mark.parametrize(('far', 'near'), [(10**6, 20), (50, 50)])
def test_wide_dilation(far, near, pad_value):
    """Taps far apart get planes of their own, so memory does not grow with the dilation: only the middle tap is inside."""
    tensors, geometry = (words(2, 7, 9, 2), words(20, 3, 3, 2)), Conv2dGeometry(64, 20, 3, (1, 2), pad_value=pad_value)
    result = CPU.binary_conv2d(*tensors, geometry._replace(dilation=far, padding=far))
    assert torch.equal(result, REFERENCE.binary_conv2d(*tensors, geometry._replace(dilation=near, padding=near)))


@uses_isa
@pytest.mark.parametrize('threads', [1, 2, 3])
def test_threads(threads, monkeypatch):
    monkeypatch.setattr(torch, 'get_num_threads', lambda: threads)
    geometry = Conv2dGeometry(64, 100, 3, padding=1)
    assert equal(dict(x_words=words(2, 30, 20, 2), w_words=words(100, 3, 3, 2), geometry=geometry))


# --- the machine code ----------------------------------------------------------------------------------------

@pytest.mark.skipif('amx' in AVAILABLE, reason='this processor has AMX: the tests above ran its machine code')
@pytest.mark.skipif('avx512' not in AVAILABLE, reason='the code around the tile instructions is AVX-512')
@pytest.mark.skipif(COMPILER is None, reason='no C++ compiler')
def test_machine_code_under_a_trap_handler(tmp_path):
    """On a processor without AMX every tile instruction traps; a handler that knows the manual executes it."""
    library = tmp_path / 'trap.so'
    sources = [SOURCES / f'{name}.cpp' for name in ('api', 'driver', 'plan', 'program', 'sequence', 'isa_amx', 'isa_avx512')]
    subprocess.run([COMPILER, '-std=c++20', '-O2', '-fPIC', '-shared', '-fopenmp', '-fvisibility=hidden', '-ffp-contract=off',
                    f'-I{SOURCES}', *sources, TESTS / 'amx_trap.cpp', '-o', library], check=True)
    run = subprocess.run([sys.executable, '-m', f'{__package__}.amx_trap', library, '300'], cwd=TESTS.parent,
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ran = dict(pair.split('=') for pair in run.stdout.split())
    assert ran.keys() == INSTRUCTIONS
    assert all(int(times) > 200 for times in ran.values()), ran


@pytest.mark.skipif(platform.machine() != 'x86_64' or sys.platform != 'linux', reason='AMX is for x86-64 and Linux')
@pytest.mark.skipif(shutil.which('objdump') is None, reason='no objdump')
def test_the_engine_holds_these_instructions_and_no_other():
    code = subprocess.run(['objdump', '-d', '--no-show-raw-insn', engine.LIBRARY], check=True, capture_output=True, text=True)
    found = set(re.findall(r'\b((?:ld|st)tilecfg|tile\w+|tdp\w+)\b', code.stdout))
    assert found == INSTRUCTIONS


@pytest.mark.parametrize(('isa', 'pixels', 'runs'), [
    ('amx', (1, 7), 'avx512'), ('amx', (2, 4), 'amx'), ('avx512', (1, 7), 'avx512'), ('amx-emulated', (1, 7), 'amx-emulated')])
def test_few_pixels_are_counted(monkeypatch, isa, pixels, runs):
    """Weights are prepared for the instruction set that runs."""
    keys = []
    monkeypatch.setattr(engine, '_isa', engine.ISAS.index(isa))
    monkeypatch.setattr(lowering, 'prepared_weights', lambda tensors, key, *_: keys.append(key) or tensors[0])
    x_words, w_words = words(1, *pixels, 2), words(16, 1, 1, 2)
    conv = lowering.convolution(Conv2dGeometry(64, 16, 1), 1, pixels, dict(w_words=w_words), dict(x_words=x_words))
    *_, (struct, _) = conv['derive'](w_words, engine.isa_number(), 1)
    assert engine.ISAS[struct[engine.layout('Conv').index('isa')]] == engine.ISAS[keys[0][0]] == runs


def test_emulation_is_never_chosen_by_itself(monkeypatch):
    monkeypatch.delenv(engine.VARIABLE, raising=False)
    monkeypatch.setattr(engine, '_isa', None)
    assert engine.isa() == [isa for isa in AVAILABLE if isa != 'amx-emulated'][-1]
