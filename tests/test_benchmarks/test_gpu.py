"""The GPU benchmark without a GPU: a dry run, processes that break, the layers, the tables and pictures."""

import cProfile
import csv
import itertools
import os
import pstats
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

pytest.importorskip('triton', reason='the Triton kernels need triton')

import bnn_kernels as bk
from benchmarks.gpu import ROOT, convolutions, exactness, host, measure, networks, plots, rates, run, tables, warm
from benchmarks.gpu.layers import Convolution
from benchmarks.gpu.layers import networks as networks_of
from benchmarks.gpu.supervise import Limits, supervised
from bnn_kernels import dispatch
from bnn_kernels.triton.offline import compiling_for


def rows(file):
    return list(csv.DictReader(file.open()))


def test_dry_run_of_a_bare_checkout(tmp_path):
    """In a copy, from another folder's point of view: nothing is installed or on the path."""
    for folder in 'benchmarks', 'kernels', 'bnn_plugins':
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    command = [sys.executable, '-m', 'benchmarks.gpu.run', '--out', 'out', '--minutes', '60', '--dry-run']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert not done.returncode, done.stdout + done.stderr
    files = list((tmp_path / 'out').iterdir())
    assert len(files) <= 8
    assert all('dry-run' in file.name for file in files if file.name != 'log.txt')
    tables = {name: rows(next((tmp_path / 'out').glob(f'{name}_*.csv'))) for name in run.FILES}
    assert not [row for table in tables.values() for row in table if row['note']]
    assert {row['method'] for row in tables['exactness']} == set(warm.METHODS)
    assert {row['result'].partition(':')[0] for row in tables['exactness']} == {'ran', 'refused'}
    assert {row['method'] for row in tables['convolutions']} >= {'triton-tensorcore sign', 'triton-tensorcore mma sign',
                                                                 'triton-bitplane sign', 'triton-popcount sign',
                                                                 'cudnn fp16', 'torch.compile fp16 block'}
    assert {row['form'] for row in tables['networks']} == {*networks.BODIES, *networks.TRAINING}
    for row in tables['convolutions']:
        assert float(row['low']) <= float(row['microseconds']) <= float(row['high'])


def test_without_a_gpu_a_real_run_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(SystemExit, match='torch sees no GPU: --dry-run walks through'):
        run.run(tmp_path, 1, ['smoke'], dry=False)


def breaking(folder):
    """Rows that are fine, raise, end their process, hang with a child of their own, find no device, and are fine again."""
    def hang():
        child = subprocess.Popen(['sleep', '100'])
        (folder / 'child').write_text(str(child.pid))
        time.sleep(100)

    for name, does in (('fine', dict), ('raises', lambda: 1 / 0), ('dies', lambda: os.kill(os.getpid(), signal.SIGTERM)),
                          ('exits', lambda: os._exit(3)), ('hangs', hang), ('last', lambda: dict(value=7))):
        yield dict(name=name), does


def test_a_row_that_breaks_its_process_costs_that_row_alone(tmp_path):
    found = []
    assert not supervised(partial(breaking, tmp_path), Limits(60, 3), lambda **row: found.append(row))
    assert found == [
        dict(name='fine', note=''), dict(name='raises', note='division by zero'),
        dict(name='dies', note=f'the process ended with -{int(signal.SIGTERM)}'),
        dict(name='exits', note='the process ended with 3'), dict(name='hangs', note='killed after 3 s'),
        dict(name='last', note='', value=7)]
    state = Path(f'/proc/{(tmp_path / "child").read_text()}/stat')
    assert not state.exists() or state.read_text().split()[2] == 'Z', 'a child of what hung lives on, on the device'


def test_time_that_is_up_is_a_row(tmp_path):
    found = []
    assert not supervised(lambda: iter([({'name': 'slow'}, partial(time.sleep, 60))]), Limits(1, 30),
                          lambda **row: found.append(row))
    assert found == [dict(name='slow', note='out of time')]


def test_a_broken_device_gets_a_new_process(monkeypatch):
    """Where a call has failed and nothing works any more, the rows behind it run in another process."""
    def broken():
        raise RuntimeError('an illegal memory access was encountered')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'synchronize', broken)
    rows = lambda: iter([({'at': 0}, broken), ({'at': 1}, lambda: dict(process=os.getpid())),  # noqa: E731
                         ({'at': 2}, lambda: dict(process=os.getpid()))])
    found = []
    assert not supervised(rows, Limits(60, 30), lambda **row: found.append(row))
    assert [row['note'] for row in found] == ['the device is broken: an illegal memory access was encountered', '', '']
    assert found[1]['process'] == found[2]['process'] != os.getpid()


def test_differences_refusals_and_failures_are_told_apart():
    op, call = next(exactness.small_cases(torch.device('cpu')))
    want = torch.zeros(1, 64, 6, 7, dtype=torch.int32)
    assert exactness.outcome(op, call, want, 'reference').startswith('DIFFERENT: [')
    assert exactness.compare(op, call, 'cpu', torch.device('cpu')) == dict(result='equal', note='')
    with compiling_for('sm_75'):
        assert exactness.outcome(op, call, want, 'triton-bitplane').startswith('refused: ')
    with pytest.raises(AttributeError):
        exactness.outcome('nothing', call, want, 'reference')


@pytest.mark.parametrize('backend', ['triton-tensorcore', 'triton-popcount'])
def test_a_bound_call_is_a_launch_and_little_more(backend):
    """Counted in calls of functions, which do not depend on who else is on the machine; `host.measure` has microseconds."""
    counts = {}
    for _, op, fixed, inputs in host.calls():
        with compiling_for('sm_90') as gpu, bk.set_backend(backend), torch.no_grad():
            try:
                bound = partial(dispatch.bind(op, fixed, inputs), **inputs)
            except RuntimeError:
                continue
            for _ in range(3):
                bound()
            bare = host._bare(gpu.launches[-1])
            bare()
            counts[op] = [calls_of(call) for call in (bound, bare)]
    assert {'binary_conv2d', 'binary_conv2d_sign', 'binary_block2d', 'binary_linear'} <= set(counts)
    for op, (bound, bare) in counts.items():
        assert bound < (1.2 if op in ('binary_block2d', 'int8_conv2d') else 0.9) * bare, counts


def calls_of(call) -> int:
    profile = cProfile.Profile()
    profile.runcall(call)
    return pstats.Stats(profile).total_calls


def test_layers_of_the_networks():
    found = networks_of(224)
    macs = {name: sum(layer.operations(1) for layer in layers) / 2e9 for name, layers in found.items()}
    assert macs['ResNet-18'] == pytest.approx(1.676, abs=1e-3)  # 1.814 of torchvision less stem, shortcuts and classifier
    assert macs['ReActNet-A'] == pytest.approx(4.82, abs=5e-3)  # BOPs in table 4 of arXiv 2003.03488
    assert [len(layers) for layers in found.values()] == [16, 32, 48, 31]
    for layers in found.values():
        for before, after in itertools.pairwise(layers):
            assert after.size == before.out_size
            assert after.channels in (before.outputs, 2 * before.outputs)
    layer = Convolution(64, 128, 3, 2, 57)
    image = torch.nn.functional.conv2d(torch.zeros(1, 1, 57, 57), torch.zeros(1, 1, 3, 3), None, 2, 1)
    assert layer.out_size == image.shape[-1]
    assert layer.bytes(2, 1, 1, 16) == (2 * 57 * 57 * 64 + 128 * 9 * 64 + 2 * 29 * 29 * 128 * 16) // 8


def test_every_setting_is_in_the_plan_and_the_important_ones_first():
    plan = list(convolutions.plan())
    assert [(image, batch) for image, batch, *_ in plan[:21:7]] == list(convolutions.FIRST)
    assert all('ResNet-18' in counts for *_, counts in plan[:3 * convolutions.RESNET18])
    assert {(image, batch) for image, batch, *_ in plan} == {(i, b) for i in (224, 640, 800) for b in (1, 8, 32, 128)}
    assert sum(counts.get('ResNet-50', 0) for image, batch, _, counts in plan if (image, batch) == (640, 8)) == 48
    assert len(plan) == len({(image, batch, layer, *counts) for image, batch, layer, counts in plan})


def test_quantiles():
    assert measure._quantiles([i * 1e-6 for i in range(11)]) == (5, 1, 9)


def write(folder, **times):
    where = dict(image=224, batch=8, networks='ResNet-18:4', channels=64, outputs=64, kernel=3, stride=1, size=56, low='',
                 high='', operations=1000, bytes=10, note='')
    results = measure.Results(folder / 'convolutions_Chip_torch-1_triton-2.csv', run.FILES['convolutions'])
    for method, microseconds in times.items():
        results.add(**where, method=method.replace('_', ' '), microseconds=microseconds)
    return results.path


def test_tables_come_from_the_files(tmp_path):
    assert tables.convolutions(tmp_path).startswith('Nothing was measured on a GPU yet')
    write(tmp_path, **{'cudnn fp16': 3000, 'triton-tensorcore sign': 500, 'triton-tensorcore block': 1500})
    assert '| ResNet-18 | 224 | 8 | 12.00 | 2.00 | 6.00 | 6.0 | 2.0 |' in tables.convolutions(tmp_path)
    assert 'Chip, torch-1, triton-2.' in tables.convolutions(tmp_path)
    write(tmp_path, **{'cudnn fp16': 3000, 'triton-tensorcore sign': ''})
    assert 'ResNet-18' not in tables.convolutions(tmp_path)  # not everything was measured
    assert '| sm_90a wgmma | 256 3x3 | sign |' in tables.profiled()


def test_pictures(tmp_path):
    file = write(tmp_path, **{'cudnn fp16': 3000, 'triton-tensorcore sign': 500})
    assert [path.stat().st_size > 0 for path in plots.draw(file)] == [True, True]
    assert plots.draw(write(tmp_path / 'b', **{'triton-tensorcore sign': 500})) == []


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='no nvcc to compile the micro-benchmarks with')
def test_rates_compile(tmp_path):
    source = tmp_path / 'rates.cu'
    source.write_text('\n'.join(rate.source for rate in rates.rates()))
    done = subprocess.run(['nvcc', '-gencode', 'arch=compute_90a,code=sm_90a', '-ptx', '-o', tmp_path / 'rates.ptx', source],
                          capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    ptx = (tmp_path / 'rates.ptx').read_text()
    for rate in rates.rates():
        kernel = ptx.partition(f'.entry rate_{rate.name.replace(" ", "_")}(')[2].partition('.entry')[0]
        word = {'wgmma': 'wgmma.mma_async', 'mma': 'mma.sync', 'add': 'add.u32', 'mad': 'mad.lo.u32'}.get(
            rate.name.split()[0], rate.name)
        assert kernel.count(f'\t{word}') + kernel.count(f' {word}') >= rate.per_iteration


def test_rates_know_the_size_of_an_instruction():
    products = {rate.name: rate.products for rate in rates.rates()}
    assert products['wgmma b1 n128'] == 8 * products['wgmma s8 n128'] == 64 * 128 * 256
    assert products['mma b1 and'] == 8 * products['mma int8'] == 16 * 8 * 256
