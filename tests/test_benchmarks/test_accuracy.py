"""The accuracy benchmark: a small grid from start to table, interrupted and resumed; costs by hand."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.accuracy import run, tables
from benchmarks.accuracy.cost import cost
from benchmarks.accuracy.grid import GRIDS, load_grid, runs
from benchmarks.rows import locked, read_rows
from bnn_plugins.layers import RPReLU

ROOT = Path(__file__).parents[2]
GRID = """
config = 'configs/classification/resnet8_reactnet_digits.py'
networks = dict(tiny=dict(type='bnn_plugins.BNNCifarResNet', depth=8, in_channels=1, base_channels=4))
options = {'train_dataloader.dataset.size': 200, 'val_dataloader.dataset.size': 50,
           'log_level': 'WARNING'}
peak_lr = 1e-2
validations = 2
blocks = [dict(networks=['tiny'], methods=['bireal', dict(type='recu', tau_min=0.8)], expansions=[None, dict(tau=2)],
               epochs=[4], seeds=[0])]
"""


@pytest.fixture(scope='module')
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp('grid') / 'tiny.py'
    path.write_text(GRID)
    return path


def test_a_grid_is_interrupted_resumed_and_done_once(grid, tmp_path, monkeypatch):
    out, work_dir = tmp_path / 'tiny.csv', tmp_path / 'work'
    cfg = load_grid(str(grid))
    wanted = list(runs(cfg, 'tiny'))
    assert [r.key for r in wanted] == ['tiny-bireal-none-4-0', 'tiny-bireal-es_tau=2-4-0', 'tiny-recu_tau_min=0.8-none-4-0',
                                       'tiny-recu_tau_min=0.8-es_tau=2-4-0']
    first = wanted[1]
    assert run.train(first, cfg, work_dir / first.key, deadline=0.0)[0] is None, 'the time is over after one epoch'
    assert (work_dir / first.key / 'last_checkpoint').read_text().endswith('epoch_1.pth')
    run.work('tiny', cfg, work_dir, out, tmp_path / 'state', float('inf'))
    assert not any((tmp_path / 'state').glob('*')), 'finished runs leave no state'
    rows = read_rows(out)
    assert [row['key'] for row in rows] == sorted(r.key for r in wanted)
    assert len(list((work_dir / first.key).glob('2*/'))) == 2, 'two stretches of one training'
    for row in rows:
        assert (row['steps'], row['epochs'], row['seed']) == ('8', '4', '0')
        assert row['best_test_top1'] == ''
        assert 0 <= float(row['test_top1']) <= 100
        if row['epoch'] == '4':
            assert row['last_test_top1'] == row['test_top1']
        assert int(row['epoch']) in (2, 4)
    base, wide = rows[1], rows[0]
    assert base['expand'] == 'none'
    assert (base['bops'], base['params_binary']) == (wide['bops'], wide['params_binary'])
    assert int(wide['multiplies']) == 2 * int(base['multiplies'])

    def refuse(*args):
        raise AssertionError('it was done already')

    monkeypatch.setattr(run, 'train', refuse)
    run.work('tiny', cfg, work_dir, out, tmp_path / 'state', float('inf'))

    monkeypatch.setattr(tables, 'HERE', tmp_path)
    (tmp_path / 'results').mkdir()
    out.rename(tmp_path / 'results/tiny.csv')
    (tmp_path / 'published.csv').write_text('network,method,expand,data,top1,source\ntiny,bireal,none,digits,99.9,nobody\n')
    text = tables.table('tiny')
    line = next(line for line in text.splitlines() if '| bireal |  |' in line)
    cells = [cell.strip() for cell in line.split('|')]
    assert cells[5] == '1'
    assert cells[6] == f'{float(base["test_top1"]):.1f}'
    assert cells[7] == f'{float(base["last_test_top1"]):.1f}'
    assert cells[11] == '99.9'


def test_a_locked_run_is_left_alone(grid, tmp_path, monkeypatch):
    cfg = load_grid(str(grid))
    monkeypatch.setattr(run, 'train', lambda *args: pytest.fail('another process does this one'))
    with locked(tmp_path / next(iter(runs(cfg, 'tiny'))).key / 'lock'):
        cfg.blocks[0].update(methods=['bireal'], expansions=[None])
        run.work('tiny', cfg, tmp_path, tmp_path / 'out.csv', tmp_path / 'state', float('inf'))
    assert not (tmp_path / 'out.csv').exists()


@pytest.mark.parametrize('name', sorted(path.stem for path in GRIDS.glob('*.py')))
def test_every_run_of_every_grid_can_be_built(name, tmp_path):
    """Once per network, method and expansion."""
    from bnn_plugins.registry import MODELS
    grid = load_grid(name)
    kinds = {(r.network, r.method_name, r.expand_name): r for r in runs(grid, name)}
    for r in kinds.values():
        model = MODELS.build(run.run_config(r, grid, tmp_path).model)
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10), r.key


def test_no_seed_is_second_before_all_are_first():
    seeds = [r.seed for r in runs(load_grid('cpu_tau'), 'cpu_tau')]
    assert seeds == sorted(seeds)


def test_an_unknown_grid_is_named():
    with pytest.raises(FileNotFoundError, match=r"no grid 'cpu_taus'; there are .*cpu_resnet20, cpu_tau"):
        load_grid('cpu_taus')


def test_list_from_the_shell(grid, tmp_path):
    command = [sys.executable, '-m', 'benchmarks.accuracy.run', str(grid), '--out', str(tmp_path / 'x.csv'), '--list']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'tiny-bireal-none-4-0' in done.stdout.split()
    assert 'done' not in done.stdout.split()


def test_costs_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), RPReLU(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    found = cost(model, torch.randn(1, 3, 5, 6))
    assert found.flops == 30 * (3 * 4 * 9 + 4 * 2)
    assert found.multiplies == 30 * (4 + 4 + 2)
    assert found.stream_bytes == 30 * (4 + 2) * 4
    assert model.training


def test_published_rows_have_a_source():
    for row in csv.DictReader((ROOT / 'benchmarks/accuracy/published.csv').open()):
        assert row['source']
        assert 50 < float(row['top1']) < 100


def test_plots(tmp_path, monkeypatch):
    from benchmarks.accuracy import plots
    rows = [dict(network=network, method=method, expand=expand, epochs=epochs, test_top1='50', train_top1='60', ops='1e6',
                 key=f'{network}-{method}', interval='2', val_top1='10 20 30')
            for network in ('small', 'large') for method in ('recu', 'bireal') for expand in ('none', 'es_tau=2')
            for epochs in ('10', '40')]
    monkeypatch.setattr(plots, 'read_rows', lambda path: rows)
    monkeypatch.setattr(plots, 'DOCS', tmp_path)
    plots.main()
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ['resnet20.svg', 'resnet20_curves.svg', 'tau_curves.svg']
    plots.main()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_table_over_the_length_of_the_training(tmp_path, monkeypatch):
    """Seeds together, lengths side by side, the base network first; what was not run is empty."""
    monkeypatch.setattr(tables, 'HERE', tmp_path)
    (tmp_path / 'results').mkdir()
    measured = [('es_tau=2', 40, 50.0), ('none', 10, 20.0), ('none', 10, 22.0), ('none', 40, 40.0)]
    lines = ['method,expand,epochs,test_top1,multiplies,device,threads,torch',
             *(f'recu,{expand},{epochs},{top1},4000,cpu,1,2.0' for expand, epochs, top1 in measured)]
    (tmp_path / 'results/toy.csv').write_text('\n'.join(lines))
    text = tables.lengths('toy')
    assert '| recu |  | 21.0 ± 1.4 | 40.0 | 0.004 |\n| recu | es_tau=2 |  | 50.0 | 0.004 |' in text
