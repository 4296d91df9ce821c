"""The wheel, in a new environment outside of the repository: the demo, the tools, configs that inherit from the package.

``BNN_PLUGINS_WHEEL`` names a wheel to test; without it one is built here, without a C++ compiler, as on a machine that has
none.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TEN_LINES = """
_base_ = 'bnn_plugins::detection/retinanet_bnn-r18_fpn_digits.py'
model = dict(test_cfg=dict(score_thr=0.0))
train_dataloader = dict(batch_size=4)
train_cfg = dict(max_epochs=1)
randomness = dict(seed=3)
"""

pytestmark = pytest.mark.nightly


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The files of the repository, as a clone has them."""
    folder = tmp_path_factory.mktemp('source')
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, check=True).stdout
    packed = subprocess.run(['tar', '-c', '--null', '-T', '-'], cwd=ROOT, input=files, capture_output=True, check=True).stdout
    subprocess.run(['tar', '-x'], cwd=folder, input=packed, check=True)
    return folder


def build_wheel(source, out):
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '--wheel-dir', out,
                    source], check=True, env=os.environ | {'CC': 'false', 'CXX': 'false'})
    built, = out.glob('*.whl')
    return built


@pytest.fixture(scope='module')
def wheel(source, tmp_path_factory):
    if given := os.environ.get('BNN_PLUGINS_WHEEL'):
        return Path(given)
    return build_wheel(source, tmp_path_factory.mktemp('dist'))


@pytest.fixture(scope='module')
def run(wheel, tmp_path_factory):
    """Runs a command of a new environment in an empty folder; other packages are those of this environment."""
    folder = tmp_path_factory.mktemp('new')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    python = folder / 'venv/bin/python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps', '--no-index', wheel],
                   check=True)
    site, = folder.glob('venv/lib/python*/site-packages')
    site.joinpath('others.pth').write_text(str(Path(find_spec('torch').origin).parents[1]))
    empty = folder / 'empty'
    empty.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}

    def call(*words):
        command = [folder / 'venv/bin' / words[0], *map(str, words[1:])]
        done = subprocess.run(command, cwd=empty, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    call.folder, call.site = empty, site
    return call


def test_what_is_in_the_wheel(wheel):
    """Mutation: without BuildWheel, the tag names a version of Python, and another one cannot install it."""
    assert re.fullmatch(r'bnn_plugins-[\d.]+-py3-none-(linux|manylinux|macosx)_\w+\.whl', wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert {'bnn_plugins/.mim/configs/detection/retinanet_bnn-r18_fpn_digits.py', 'bnn_plugins/.mim/tools/train.py',
            'bnn_plugins/.mim/model-index.yml', 'bnn_plugins/py.typed', 'bnn_kernels/py.typed',
            'bnn_plugins/apps/report.html.j2', 'bnn_plugins/apps/commands/train.py',
            'bnn_kernels/triton/tables.toml'} <= set(names)
    assert not [name for name in names if name.startswith(('tests/', 'benchmarks/', 'kernels/', 'docs/'))]


def test_the_source_distribution_builds_the_same_wheel(source, wheel, tmp_path):
    """What MANIFEST.in forgets is missing in a wheel that is built from the source distribution."""
    code = 'from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))'
    subprocess.run([sys.executable, '-c', code, tmp_path], cwd=source, check=True, capture_output=True)
    archive, = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter='data')
    built = build_wheel(archive.with_suffix('').with_suffix(''), tmp_path)

    def content(path):
        return {name for name in zipfile.ZipFile(path).namelist() if not name.endswith('_engine.so')}

    assert content(built) == content(wheel)


def test_it_is_the_installed_one(run):
    where = run('python', '-c', 'import bnn_plugins, bnn_kernels; print(bnn_plugins.__file__, bnn_kernels.__file__)').split()
    assert all(Path(path).is_relative_to(run.site) for path in where)
    assert re.fullmatch(r'[\d.]+\s*', run('bnn', '--version'))
    assert 'digits' in run('bnn', 'zoo', 'list')
    assert Path(run('bnn', 'zoo', 'path', 'retinanet_bnn-r18_fpn_digits').strip()).is_relative_to(run.site)


def test_a_config_that_inherits_from_the_package(run):
    pytest.importorskip('mmdet')
    (run.folder / 'mine.py').write_text(TEN_LINES)
    arguments = ('mine.py', '--shape', 64, 64)
    assert 'backbone.layer1.0.conv1' in run('bnn', 'summary', *arguments)
    assert 'backbone.layer1.0.conv1' in run('python', run.site / 'bnn_plugins/.mim/tools/summary.py', *arguments)
    run('bnn', 'make-digits', 'work_dirs/digits', '--train', 8, '--val', 2, '--test', 2, '--size', 64)
    run('bnn', 'train', 'mine.py', '--work-dir', 'work', '--quiet')
    assert torch.load(run.folder / 'work/epoch_1.pth', weights_only=False)['meta']['iter'] == 2


def test_the_demo(run):
    pytest.importorskip('mmdet')
    out = run('bnn', 'demo', '--short')
    assert '=== 6/6  report' in out
    assert (run.folder / 'work_dirs/demo/report.html').is_file()
    assert (run.folder / 'work_dirs/demo/model.safetensors').is_file()
