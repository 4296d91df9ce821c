"""The engine without Python: a C++ program of loops against every instruction set of this processor (make check-arm's)."""

import os
import shutil
import subprocess
from array import array
from pathlib import Path

import pytest

import bnn_kernels as bk
from bnn_kernels.cpu import available_isas, engine

HERE = Path(__file__).parent
COMPILER = os.environ.get('CXX') or shutil.which('c++') or shutil.which('g++')


STRUCTS = 'Conv', 'Fused', 'Signs', 'Packing', 'Downsample', 'Stem', 'Lstm', 'Attention', 'Normalized'


@pytest.mark.skipif(bk.available_backends()['cpu'] != 'available', reason='the engine was not compiled')
@pytest.mark.parametrize('struct', STRUCTS)
def test_python_fills_structs_in_the_order_of_their_fields(struct):
    """By sizeof and offsetof: the fields that the library names are all there are, each of eight bytes, without gaps."""
    size, *offsets = (int(part.partition(':')[2]) for part in engine.library().bnn_struct_layout(struct.encode()).split()
                      for part in [part.decode()])
    assert offsets == list(range(0, size, 8))
    names = engine.layout(struct)
    assert len({*names}) == len(offsets)
    values = {name: number for number, name in enumerate(reversed(names))}
    assert engine.struct(struct, **values).tolist() == list(range(len(names)))[::-1]
    for wrong in values | dict(other=0), dict(list(values.items())[1:]):
        with pytest.raises(TypeError, match=f'{struct} has other fields: '):
            engine.fields(struct, **wrong)


@pytest.mark.skipif(bk.available_backends()['cpu'] != 'available', reason='the engine was not compiled')
@pytest.mark.skipif(COMPILER is None, reason='no C++ compiler')
def test_loops_in_cpp(tmp_path):
    program = tmp_path / 'exactness'
    sources = Path(engine.__file__).parent / 'src'
    build = subprocess.run([COMPILER, '-std=c++20', '-O1', '-Wall', '-Wextra', '-Werror', f'-I{sources}',
                            HERE / 'exactness.cpp', engine.LIBRARY, f'-Wl,-rpath,{engine.LIBRARY.parent}', '-o', program],
                           capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == len(available_isas())


@pytest.mark.sanitize
@pytest.mark.skipif(bk.available_backends()['cpu'] != 'available', reason='the engine was not compiled')
def test_exceptions_say_what_they_are():
    """Not every one is a lack of memory."""
    record = array('q', [2, 99])
    with pytest.raises(RuntimeError, match=r'^the engine failed: operation 99 is unknown$'):
        engine.call('bnn_run', record.buffer_info()[0], len(record), 0, 0, 0)
