"""Results files: several processes may write one."""

import subprocess
import sys
from pathlib import Path

from benchmarks.rows import locked, read_rows, write_row

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from benchmarks.rows import write_row
for seed in range(20):
    write_row(Path(sys.argv[1]), dict(config=sys.argv[2], seed=seed, value=seed / 4), ['config', 'seed'],
              lambda r: (r['config'], int(r['seed'])))
"""


def test_rows_of_two_processes_are_all_there(tmp_path):
    path = tmp_path / 'results' / 'rows.csv'
    writers = [subprocess.Popen([sys.executable, '-c', WRITER, str(path), name], cwd=ROOT) for name in ('b', 'a')]
    assert [writer.wait() for writer in writers] == [0, 0]
    rows = read_rows(path)
    assert [(row['config'], row['seed']) for row in rows] == [(name, str(seed)) for name in 'ab' for seed in range(20)]
    assert rows[3]['value'] == '0.75'


def test_a_run_that_is_measured_again_replaces_its_row(tmp_path):
    path = tmp_path / 'rows.csv'
    for value in 1, 2:
        write_row(path, dict(config='a', seed=0, value=value), ['config', 'seed'], lambda r: r['config'])
    assert read_rows(path) == [dict(config='a', seed='0', value='2')]


def test_a_lock_is_held_once(tmp_path):
    with locked(tmp_path / 'lock') as mine:
        assert mine
        with locked(tmp_path / 'lock') as also:
            assert not also
    with locked(tmp_path / 'lock') as mine:
        assert mine
