"""Every notebook of the documentation runs from top to bottom, in a folder and a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / 'docs/notebooks').glob('*.ipynb'))


@pytest.mark.nightly
@pytest.mark.parametrize('notebook', NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(notebook, tmp_path):
    cells = [''.join(cell['source']) for cell in json.loads(notebook.read_text())['cells'] if cell['cell_type'] == 'code']
    (tmp_path / 'notebook.py').write_text('\n\n'.join(cells))
    result = subprocess.run([sys.executable, 'notebook.py'], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
