"""The plain Triton backends from outside: interpreted against the reference, and what a user is told where they cannot run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif('not __import__("importlib").util.find_spec("triton")', reason='Triton is not installed')


def run(*command, **environment) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *command], env=os.environ | environment, capture_output=True, text=True,
                          cwd=HERE.parents[1])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize('backend', [pytest.param('triton-popcount', marks=pytest.mark.nightly), 'triton-bitplane'])
def test_interpreted(backend):
    """Every test of triton_interpreted.py, in a process where Triton interprets."""
    tests = run('-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', str(HERE / 'triton_interpreted.py'),
                TRITON_INTERPRET='1', BNN_KERNELS_BACKEND=backend)
    assert tests.returncode == 0, tests.stdout + tests.stderr


# --- a user without a GPU, without Triton, with another one --------------------------------------------------

SAY = """
import bnn_kernels as bk, torch
words = torch.zeros(1, 1, dtype=torch.int32)
bk.binary_linear(words, words, 32)
print(bk.last_backend())
print(bk.available_backends()[{name!r}])
"""
PLAIN = ('triton-bitplane', 'triton-popcount')


@pytest.mark.parametrize('name', [*PLAIN, 'triton-tensorcore'])
@pytest.mark.parametrize(('before', 'reason'), [
    ('import sys; sys.modules["triton"] = None', "ImportError: Triton is not installed: pip install 'bnn_plugins[triton]'"),
    ('import sys, types; sys.modules["triton"] = types.ModuleType("triton"); sys.modules["triton"].__version__ = "3.1.0"',
     'ImportError: Triton 3.1.0 is older than 3.6, the first that these kernels were tested with: upgrade it'),
])
def test_without_a_triton_to_use(name, before, reason):
    said = run('-c', before + SAY.format(name=name))
    assert said.returncode == 0, said.stderr
    backend, *lines = said.stdout.splitlines()
    assert backend in ('cpu', 'numba', 'reference')
    assert len(lines) == 1
    assert lines[0].startswith(reason)


@needs_triton
def test_versions():
    from bnn_kernels.triton.versions import gluon_refusal, refusal, release
    assert release('3.7.1+git0123') == (3, 7)
    for version in ('3.6.0', '3.7.1', '3.8.0', '3.9.0'):
        assert (refusal(version), gluon_refusal(version)) == ('', '')
    assert refusal('3.10.0') == ''
    assert gluon_refusal('3.10.0') == ('Triton 3.10.0 is untested: its Gluon language and its PTX may have changed, so only '
                                       'the plain Triton kernels run (tested are 3.6, 3.7, 3.8, 3.9)')
    assert refusal('3.5.1').startswith('Triton 3.5.1 is older than 3.6')


@pytest.fixture(params=PLAIN)
def backend(request):
    pytest.importorskip('triton')
    from bnn_kernels.triton.bitplane import Bitplane
    from bnn_kernels.triton.popcount import Popcount
    return {cls.name: cls for cls in (Bitplane, Popcount)}[request.param]()


def test_without_a_gpu(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    able, reason = backend.available()
    assert not able
    assert reason == (f'{backend.name} needs an NVIDIA or AMD GPU and torch sees none; TRITON_INTERPRET=1 in the environment '
                      f'interprets it on the CPU, for tests')


def test_devices(backend, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (7, 0))
    least = '.'.join(map(str, backend.least_capability))
    assert backend.runs_on(torch.device('cpu')) == (False, f'{backend.name} takes CUDA tensors, got cpu')
    assert backend.runs_on(torch.device('cuda:1')) == (
        False, f'{backend.name} needs compute capability {least}, cuda:1 has 7.0')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (10, 0))
    assert backend.runs_on(torch.device('cuda:1')) == (True, '')
    monkeypatch.setattr(torch.version, 'hip', '6.4')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 4))
    assert backend.runs_on(torch.device('cuda:1')) == (True, '')


@needs_triton
def test_tiles_follow_channels_and_architecture():
    from bnn_kernels.triton import tables
    assert tables.tile('bitplane', 'sm_80', 127)['BLOCK_N'] == 64
    assert tables.tile('bitplane', 'sm_80', 128)['BLOCK_N'] == 128
    assert tables.tile('bitplane', 'sm_80', 1) == tables.tile('bitplane', 'an architecture of tomorrow', 31)
    assert tables.tile('popcount', 'interpreter', 64) != tables.tile('popcount', 'sm_80', 64)
    for kernel, architectures in tables._tables().items():
        for rows in architectures.values():
            assert rows[0]['outputs'] == 1, kernel
            for row in rows:
                assert row['BLOCK_N'] % 32 == 0, 'a tile writes whole words'
                assert all(row[name].bit_count() == 1 for name in row if name.startswith('BLOCK') or name == 'num_warps')


def test_warmup_refuses_what_would_do_harm():
    import bnn_kernels as bk
    with pytest.raises(ValueError, match=r'call model.eval\(\) first'):
        bk.warmup(torch.nn.Identity(), [(1, 3)])
    with pytest.raises(ValueError, match=r'list of input shapes such as \[\(1, 3, 224, 224\)\], got \(1, 3\)'):
        bk.warmup(torch.nn.Identity().eval(), (1, 3))


def test_warmup_runs_every_shape_and_keeps_what_ran_before():
    import bnn_kernels as bk
    seen = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('scale', torch.ones(1, dtype=torch.float16))

        def forward(self, x):
            seen.append((tuple(x.shape), x.dtype))
            return bk.pack_features(x)

    words = torch.zeros(1, 1, dtype=torch.int32)
    bk.binary_linear(words, words, 32)
    linear = bk.last_backend('binary_linear')
    ran = bk.warmup(Net().eval(), [(1, 3), (2, 4)])
    assert ran == {'pack_features': bk.last_backend()}
    assert seen == [((1, 3), torch.float16), ((2, 4), torch.float16)]
    assert bk.last_backend('binary_linear') == linear
