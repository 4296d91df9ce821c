"""Tables in prose are what their results files give."""

import subprocess
import sys
from pathlib import Path

from benchmarks import rows, tables

ROOT = Path(__file__).parents[2]


def test_no_table_is_out_of_date():
    done = subprocess.run([sys.executable, '-m', 'benchmarks.tables', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_table_is_made_from_the_rows(monkeypatch):
    monkeypatch.setitem(tables.TABLES, 'bccd', lambda: '| new |\n')
    text = 'before\n<!-- table: bccd -->\n| old |\n<!-- end -->\nafter'
    assert tables.filled(text) == 'before\n<!-- table: bccd -->\n| new |\n<!-- end -->\nafter'


def test_spread():
    assert rows.spread(['0.5'], factor=100) == '50.0'
    assert rows.spread(['1', '2', '3']) == '2.0 ± 1.0'
    assert rows.spread(['']) == ''
