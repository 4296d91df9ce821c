"""The benchmark of character models: a short run of the command, its rows and the tables made of them."""

import csv
import sys

import pytest
from mmengine.config import Config

from benchmarks.rows import locked
from benchmarks.sequence import run, tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two of the configs with two iterations on a small text."""
    (tmp_path / 'text.txt').write_text('a small text of few letters.\n' * 60)
    for name in ('lstm_text', 'blstm_text'):
        cfg = Config.fromfile(run.FOLDER / f'{name}.py')
        cfg.merge_from_dict({'model.vocabulary': 14, 'model.rnn.hidden_size': 8, 'train_cfg.max_iters': 2,
                             'train_dataloader.batch_size': 2, 'train_dataloader.dataset.length': 10,
                             'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 9})
        for split in ('val', 'test'):
            cfg.merge_from_dict({f'{split}_dataloader.dataset.length': 40, f'{split}_dataloader.dataset.stride': 30})
        cfg.dump(tmp_path / f'{name}.py')
    monkeypatch.setattr(run, 'FOLDER', tmp_path)
    monkeypatch.setattr(tables, 'RESULTS', tmp_path)
    return tmp_path


def command(monkeypatch, folder, *configs):
    monkeypatch.setattr(sys, 'argv', ['run', '--text', str(folder / 'text.txt'), '--work-dir', str(folder / 'work'), '--out',
                                      str(folder / 'text.csv'), '--configs', *configs])
    run.main()


def test_rows_and_tables(folder, monkeypatch):
    assert 'No results yet' in tables.text()
    command(monkeypatch, folder, 'blstm_text')
    command(monkeypatch, folder, 'lstm_text', 'blstm_text')  # what is trained is not trained again
    rows = list(csv.DictReader((folder / 'text.csv').open(newline='')))
    assert [row['config'] for row in rows] == ['lstm_text', 'blstm_text'], 'in the order of the table, one row each'
    lstm, blstm = rows
    assert (lstm['packed_bpc'], lstm['bytes_packed']) == ('', '')
    assert blstm['packed_bpc'] == blstm['bpc']
    assert int(blstm['bytes_packed']) < int(blstm['bytes_float'])
    assert blstm['characters'] == str(2 * 2 * 10)
    assert len(blstm['sample']) == 301
    more = f'{float(blstm["bpc"]) - float(lstm["bpc"]):+.3f}'
    line = next(line for line in tables.text().splitlines() if line.startswith('| blstm_text'))
    assert [cell.strip() for cell in line.split('|')][6] == more
    assert tables.samples().count('```text') == 2


def test_a_run_that_another_process_has_is_left_alone(folder, monkeypatch):
    with locked(folder / 'work/lstm_text-0/lock') as mine:
        assert mine
        command(monkeypatch, folder, 'lstm_text')
    assert not (folder / 'text.csv').exists()


def test_table_of_detectors(folder):
    assert 'No results yet' in tables.detectors(('two', 'one'))
    (folder / 'detectors.csv').write_text(
        'config,epochs,val_map50,test_map50,packed_map50,bytes_packed,minutes,threads,processor,torch\n'
        + ''.join(f'{name},8,0.5,0.25,0.25,1500000,3.5,1,Fast,2.13\n' for name in ('one', 'other', 'two')))
    lines = tables.detectors(('two', 'one')).splitlines()
    assert [line.split('|')[1].strip() for line in lines[2:4]] == ['two', 'one'], 'in the order of the names, no others'
    assert lines[3] == '| one | 8 | 50.0 | 25.0 | 25.0 | 1.50 | 3.5 (1) |'
    assert lines[-1].endswith('Machine: Fast, torch 2.13.')
