"""The CPU suite: its tables, its order, its sections on tiny networks."""

import csv
import subprocess
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip('matplotlib')

import bnn_kernels
from benchmarks.cpu import convolutions, networks, run, sequences, tables

NEEDS_ENGINE = pytest.mark.skipif(bnn_kernels.available_backends()['cpu'] != 'available',
                                  reason=bnn_kernels.available_backends()['cpu'])


@NEEDS_ENGINE
def test_body_of_a_thin_network():
    result = networks.run_body(8, [1], 1, 1.0, ('fused', 'float32'), width=8)
    assert result.ok
    assert [(row.variant.partition(' ')[0], row.part) for row in result.rows][-1] == ('float32', 'body')
    fused = [row for row in result.rows if row.variant.startswith('fused')]
    assert [row.variant for row in fused] == [f'fused [{backend}]' for backend in networks.backends()]
    assert [row.backend for row in fused] == [f'cpu ({backend.partition(":")[2]})' for backend in networks.backends()]
    layers = result.breakdowns[0].rows
    widths = [(8, 8)] * 4 + [(8, 16)] + [(16, 16)] * 3 + [(16, 32)] + [(32, 32)] * 3 + [(32, 64)] + [(64, 64)] * 3
    sizes = [8] * 4 + [4] * 4 + [2] * 4 + [1] * 4
    macs = sum(9 * a * b * size ** 2 for (a, b), size in zip(widths, sizes, strict=True))
    assert sum(row.macs for row in layers if row.group == 'binary') == macs
    assert sum(row.operators == 'downsample2d' for row in layers) == 3


def test_the_twin_is_the_ordinary_resnet():
    twin = networks.body_models(8).twin
    assert sum(isinstance(module, torch.nn.Conv2d) for module in twin.modules()) == 16 + 3
    assert not any(isinstance(module, torch.nn.AvgPool2d) for module in twin.modules())


@NEEDS_ENGINE
def test_convolutions_of_one_shape():
    isas = convolutions.instruction_sets()
    rows = convolutions.measure_shape(32, 6, isas, 'all', 2, 1.0)
    assert [row.isa for row in rows if row.variant == 'binary'] == isas
    assert 'amx-emulated' not in isas
    by_name = {row.isa or row.variant: row for row in rows}
    for row in rows:
        assert row.gmacs == pytest.approx(32 * 32 * 9 * 36 / row.median_ms / 1e6)
        assert row.x_float32_prepacked == pytest.approx(by_name['float32-prepacked'].median_ms / row.median_ms)
        assert (row.of_ceiling == '') == (row.variant != 'binary')


@NEEDS_ENGINE
def test_an_inexact_path_stops_the_measurement(monkeypatch):
    monkeypatch.setattr(bnn_kernels, 'binary_conv2d', lambda x, w, c, *_: torch.zeros(1, c, 6, 6, dtype=torch.int32))
    with pytest.raises(AssertionError, match='is not exact at 32@6'):
        convolutions.measure_shape(32, 6, ['portable'], 'all', 1, 1.0)


def test_prepacked_convolutions_are_convolutions():
    x = torch.randn(1, 16, 5, 7).contiguous(memory_format=torch.channels_last)
    w = torch.randn(16, 16, 3, 3)
    calls = convolutions.float_calls(x, w)
    expected = F.conv2d(x, w, None, 1, 1)
    torch.testing.assert_close(calls['float32-prepacked'](), expected)
    if 'bfloat16-prepacked' in calls:
        torch.testing.assert_close(calls['bfloat16-prepacked']().float(), expected, atol=0.3, rtol=0.1)


def test_sections_run_one_after_the_other_and_go_on_after_a_failure(tmp_path, capsys):
    seen = []

    def start(command, cwd, env):
        section = command[command.index('--section') + 1]
        seen.append((section, env.get('ONEDNN_MAX_CPU_ISA'), '--quick' in command))
        folder = Path(command[command.index('--out') + 1])
        if section != 'body160':
            kind = 'convolutions' if section.startswith('conv') else 'networks'
            (folder / f'{section}.{kind}.csv').write_text(f'shape,ms\n{section},1\n')
        return subprocess.CompletedProcess(command, int(section == 'body160'))
    sections = ['body56', 'body160', 'convolutions', 'convolutions-avx2']
    good = run.run_suite(sections, tmp_path, tmp_path, False, [1], None, start)
    assert not good
    assert seen == [('body56', None, False), ('body160', None, False), ('convolutions', None, False),
                    ('convolutions-avx2', 'AVX2', False)]
    assert 'body160: FAILED (1)' in capsys.readouterr().out
    (path,) = tmp_path.glob('*-convolutions.csv')
    assert path.name == f'{run.machine_name()}-convolutions.csv'
    assert [(row['suite'], row['section'], row['shape']) for row in csv.DictReader(path.open())] == [
        ('full', 'convolutions', 'convolutions'), ('full', 'convolutions-avx2', 'convolutions-avx2')]


MACHINE = dict(processor='CPU (AVX)', torch='9', commit='abc')


def write(path, rows):
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_table_of_networks(tmp_path):
    common = dict(suite='quick', threads=1, part='backbone', **MACHINE)
    ratios = dict(x_float32='5.04', x_float32_compiled='', x_bfloat16='2', x_bfloat16_compiled='1.96')
    write(tmp_path / 'a-networks.csv', [
        dict(common, section='detector', variant='fused [cpu:x]', backend='cpu (x)', median_ms='7.891', **ratios),
        dict(common, section='detector', variant='float32', backend='', median_ms='40', **ratios),
        dict(common, section='body56', variant='packed', backend='cpu (x)', median_ms='10', **ratios),
        dict(common, section='body56', variant='fused', backend='cpu (x)', median_ms='9', **dict(ratios, x_float32=''))])
    lines = tables.networks(tmp_path).splitlines()
    assert lines[2:5] == ['| BCCD RetinaNet, backbone | 1 | cpu (x) | 7.89 | 5.0 |  | 2.0 | 2.0 |',
                          '| ResNet-18 body, 56x56 | 1 | cpu (x) | 9.00 |  |  | 2.0 | 2.0 |', '']
    assert lines[-1] == 'Machine: CPU (AVX), torch 9, commit abc; a quick run on a machine that had other work.'


def test_table_of_convolutions(tmp_path):
    def row(shape, variant, x, bf16='2'):
        return dict(suite='full', shape=shape, variant=variant, isa='z', float_isa='all', x_float32='1', x_float32_prepacked=x,
                    x_bfloat16_prepacked=bf16, of_ceiling='0.5', **MACHINE)
    write(tmp_path / 'a-convolutions.csv', [row('64@56', 'binary', 2), row('512@7', 'binary', 8), row('64@56', 'float32', 99),
                                            row('64@160', 'binary', 3, '')])
    assert tables.convolutions(tmp_path).splitlines()[2:4] == [
        '| z | all | 64@56, 512@7 | 1.0 | 4.0 | 2.0 | 50 |', '| z | all | 64@160 | 1.0 | 3.0 |  | 50 |']


@NEEDS_ENGINE
def test_sequences_of_small_layers(monkeypatch):
    monkeypatch.setattr(sequences, 'UNITS', 40)
    monkeypatch.setattr(sequences, 'STEPS', 3)
    isas = sequences.instruction_sets()
    for layer, variants in ('lstm', ['soft', 'binary']), ('attention', ['bool', 'max_relative', 'elastic']):
        rows = sequences.measure_sequence(layer, 70 if layer == 'attention' else 2, 2, 1.0)
        assert [(row.variant, row.isa) for row in rows[:-2]] == [(name, isa) for name in variants for isa in isas]
        assert [(row.variant, row.isa, row.check) for row in rows[-2:]] == [('float32', '', ''), ('bfloat16', '', '')]
        assert all(row.check == 'ok' for row in rows[:-2])
        for row in rows:
            assert row.x_float32 == pytest.approx(rows[-2].median_ms / row.median_ms)
            assert row.x_bfloat16 == pytest.approx(rows[-1].median_ms / row.median_ms)
    assert (rows[0].size, rows[0].batch, rows[0].steps) == (70, 4, 1)


@NEEDS_ENGINE
def test_an_inexact_sequence_stops_the_measurement(monkeypatch):
    right = bnn_kernels.binary_attention
    monkeypatch.setattr(bnn_kernels, 'binary_attention', lambda *given, **named: right(*given, **named) + (
        bnn_kernels.last_backend() == 'cpu'))
    with pytest.raises(AssertionError, match='attention bool is not exact with'):
        sequences.measure_sequence('attention', 33, 1, 1.0)


def test_table_of_sequences(tmp_path):
    common = dict(suite='full', median_ms='0.5', x_float32='5.04', x_bfloat16='2', **MACHINE)
    write(tmp_path / 'a-sequences.csv', [
        dict(common, layer='lstm', size=512, batch=8, steps=100, variant='soft', isa='z'),
        dict(common, layer='lstm', size=512, batch=8, steps=100, variant='float32', isa=''),
        dict(common, layer='attention', size=256, batch=4, steps=1, variant='bool', isa='z')])
    assert tables.sequences(tmp_path).splitlines()[2:5] == [
        '| LSTM 512, batch 8, 100 steps | soft | z | 0.50 | 5.0 | 2.0 |',
        '| attention, 256 tokens, 4 heads | bool | z | 0.50 | 5.0 | 2.0 |', '']


def test_without_results_the_table_says_so(tmp_path):
    assert tables.networks(tmp_path) == tables.convolutions(tmp_path) == tables.sequences(tmp_path) == tables.NONE
