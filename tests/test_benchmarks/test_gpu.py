"""The GPU benchmark without a GPU: a dry run, the layers, the budget, the tables and pictures."""

import csv
import itertools
import shutil
import subprocess

import pytest
import torch

pytest.importorskip('triton', reason='the Triton kernels need triton')

from benchmarks.gpu import convolutions, exactness, measure, plots, rates, run, tables
from benchmarks.gpu.layers import Convolution, networks


def rows(file):
    return list(csv.DictReader(file.open()))


def test_dry_run(tmp_path, capfd):
    assert run.run(tmp_path, 200, run.STAGES, dry_run=True)
    assert 'FAILED' not in capfd.readouterr().out
    exact, = tmp_path.glob('exactness_dry-run_torch-*_triton-*.csv')
    assert {row['result'] for row in rows(exact)} == {'equal'}
    assert {row['op'] for row in rows(exact)} == {'binary_conv2d', 'binary_conv2d_sign', 'binary_block2d', 'binary_lstm',
                                              'binary_attention', 'pack_normalized'}
    sanitized, = tmp_path.glob('sanitizer-memcheck_*.txt')
    assert sanitized.read_text().count('equal') == len(rows(exact))
    times = rows(next(tmp_path.glob('convolutions_*.csv')))
    assert {row['method'] for row in times} == {
        'reference sign', 'reference block', 'cudnn fp16', 'cudnn bf16', 'torch.compile fp16 block',
        'torch.compile bf16 block', 'torch int8'}
    for row in times:
        assert not row['note'], row
        assert float(row['low']) <= float(row['microseconds']) <= float(row['high'])


def test_time_that_is_up_leaves_rows_that_say_so(tmp_path):
    run.run(tmp_path, 0, ('exactness', 'convolutions'), dry_run=True)
    assert [row['result'] for row in rows(next(tmp_path.glob('exact*')))] == ['the others were not run: out of time']
    notes = {row['note'] for row in rows(next(tmp_path.glob('convolutions*')))}
    assert notes == {'not measured: out of time'}


def test_a_stage_that_fails_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exactness, 'check', lambda *args: False)
    assert not run.run(tmp_path, 60, ('exactness', 'rates'), dry_run=True)
    said = capsys.readouterr().out
    assert 'exactness (0 s): FAILED' in said
    assert 'a backend is not exact' in said
    assert 'rates (0 s): left out: 14 kernels need a GPU' in said


def test_without_a_gpu_a_real_run_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='torch sees no GPU: --dry-run walks through'):
        run.run(tmp_path, 60, run.STAGES, dry_run=False)


def test_differences_refusals_and_failures_are_told_apart(monkeypatch):
    op, call = next(exactness.small_cases(torch.device('cpu')))
    want = torch.zeros(1, 64, 6, 7, dtype=torch.int32)
    assert exactness.outcome(op, call, want, 'reference').startswith('DIFFERENT: [')
    assert exactness.outcome(op, call, want, 'triton-tensorcore').startswith('refused: ')
    assert exactness.outcome('nothing', call, want, 'reference').startswith('FAILED: ')


def test_layers_of_the_networks():
    found = networks(224)
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
    assert {(image, batch) for image, batch, *_ in plan} == {(i, b) for i in (224, 640, 800) for b in (1, 8, 32, 128)}
    assert sum(counts.get('ResNet-50', 0) for image, batch, _, counts, _ in plan if (image, batch) == (640, 8)) == 48
    assert len(plan) == len({(image, batch, layer, *counts) for image, batch, layer, counts, _ in plan})


def test_quantiles():
    assert measure._quantiles([i * 1e-6 for i in range(11)]) == (5, 1, 9)


def write(folder, **times):
    where = dict(image=224, batch=8, networks='ResNet-18:4', channels=64, outputs=64, kernel=3, stride=1, size=56, low='',
                 high='', operations=1000, bytes=10, note='')
    results = measure.Results(folder, 'convolutions', 'Chip_torch-1_triton-2')
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
