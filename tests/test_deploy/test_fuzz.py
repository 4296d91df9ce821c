"""The readers on damaged and crafted files, a short form of ``make fuzz``."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('diffusers')
pytest.importorskip('mmengine')


@pytest.mark.slow
def test_readers(tmp_path):
    """Mutation: without the check of dtypes in load_packed_, float weights become bits; without damaged() in the quantizer, an
    exception of safetensors."""
    done = subprocess.run([sys.executable, Path(__file__).parents[1] / 'fuzz.py', '--count', '150', '--seed', '1', '--folder',
                           tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].endswith(' 0 faults')
