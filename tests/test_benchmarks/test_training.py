"""The training benchmark: from run to table."""

import sys
from pathlib import Path

import pytest

from benchmarks.rows import read_rows
from benchmarks.training import run, tables
from bnn_plugins.integrations.mmengine.run import load_config

ROOT = Path(__file__).parents[2]


def test_the_suite_from_run_to_table(tmp_path, monkeypatch):
    monkeypatch.setattr(run, 'METHODS', {'recu': ('recu', None), 'recu tau=2': ('recu', dict(tau=2))})
    monkeypatch.setattr(sys, 'argv', ['run', '--only', 'digits', '--rounds', '1', '--batch', '4', '--methods', 'recu',
                                      '--out', str(tmp_path / 'results')])
    run.main()
    run.main()
    path, = (tmp_path / 'results').glob('*.csv')
    assert [row['variant'] for row in read_rows(path)] == [
        'float32', 'bfloat16', 'recu', 'recu, bfloat16 gradients'], 'measured again, replaced'
    monkeypatch.setattr(tables, 'HERE', tmp_path)
    line = next(line for line in tables.table().splitlines() if '| recu |' in line)
    cells = [cell.strip() for cell in line.split('|')]
    assert cells[1:7] == ['digits', '4', '8x8', '1', 'recu', '1 of 34 operators']
    assert float(cells[12]) > 1


@pytest.mark.parametrize('name', run.CASES)
def test_overrides_of_the_suite_fit_its_configs(name):
    """Every section that a method is written into is in the config."""
    case = run.CASES[name]
    overrides = case.variants(['recu tau=2'])['recu tau=2']
    assert overrides[case.expand] == dict(tau=2)
    sections = load_config(str(ROOT / 'configs' / case.config)).to_dict()
    for key in overrides:
        inner = sections
        for part in key.split('.')[:-1]:
            inner = inner[part]
