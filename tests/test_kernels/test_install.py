"""Installing where no compiler works: the wheel builds, says what is lost, and the other backends run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in', 'bnn_plugins', 'kernels', 'configs', 'tools')
USE = '''
import json, sys
if '--no-numba' in sys.argv:
    sys.modules['numba'] = None
import torch, bnn_kernels as bk
x, weight = torch.randn(1, 40, 5, 6), torch.randn(3, 40, 3, 3)
epilogue = bk.Epilogue(torch.randn(3), torch.randn(3))
def results():
    words, w_words = bk.pack_activations(x), bk.pack_weight(weight)
    features, table = bk.pack_features(x), bk.pack_weight(weight[:, :6, 0, 0])
    return [words, bk.binary_conv2d(words, w_words, 40, padding=1), *bk.binary_block2d(words, w_words, 40, epilogue),
            bk.binary_linear(features, table, 6), bk.downsample2d(x, weight[..., 0, 0], torch.zeros(3), 2)]
got = results()
ran = bk.last_backend('binary_block2d')
with bk.set_backend('reference'):
    same = all(torch.equal(a, b) for a, b in zip(got, results(), strict=True))
print(json.dumps(dict(path=bk.__file__, backends=bk.available_backends(), ran=ran, same=same)))
'''


def run(*command, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *map(str, command)], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """Where a wheel of this tree is installed, made without a compiler and without a network."""
    folder = tmp_path_factory.mktemp('install')
    tree, site = folder / 'tree', folder / 'site'
    ignored = shutil.ignore_patterns('*.so', '__pycache__', '*.egg-info')
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, symlinks=True, ignore=ignored)
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(source, tree / name)
    pip = ('-m', 'pip', '--disable-pip-version-check')
    log = run(*pip, 'wheel', '--verbose', '--no-index', '--no-build-isolation', '--no-deps', '--wheel-dir', folder, tree,
              CC='/bin/false', CXX='/bin/false')
    assert 'The engine of bnn_kernels was not compiled' in log.stderr
    wheel, = folder.glob('*.whl')
    run(*pip, 'install', '--quiet', '--no-index', '--no-deps', '--target', site, wheel)
    assert all((site / package / 'py.typed').exists() for package in ('bnn_kernels', 'bnn_plugins'))
    return site


@pytest.mark.slow
@pytest.mark.parametrize('numba', [True, False], ids=['numba', 'no numba'])
def test_without_a_compiler(site, numba):
    used = json.loads(run('-c', USE, *([] if numba else ['--no-numba']), PYTHONPATH=str(site), BNN_KERNELS_BACKEND='').stdout)
    assert Path(used['path']).is_relative_to(site)
    assert 'the engine was not compiled when this package was installed: install a C++20 compiler' in used['backends']['cpu']
    if numba and used['backends']['numba'] == 'available':
        assert used['ran'] == 'numba'
    else:
        assert 'numba is not installed' in used['backends']['numba']
        assert used['ran'] == 'reference'
    assert used['same']
