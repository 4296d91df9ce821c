"""A user's mistake in each tool: one sentence, or its traceback on request."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'
MISTAKES = {'train': ['nowhere.py'], 'test': ['nowhere.py', 'a.pth'], 'pack': ['nowhere.py', 'nowhere.pth', 'a.safetensors'],
            'summary': ['nowhere.py'], 'benchmark': ['nowhere.py'], 'sample': ['nowhere'], 'train_diffusion': ['nowhere.py'],
            'sample_text': ['nowhere.py', 'a.pth'], 'import_checkpoint': ['nowhere.pth', 'out.pth', '--from', 'reactnet'],
            'make_clips': ['nowhere', 'out']}


def run(monkeypatch, tool, *flags):
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *MISTAKES[tool], *flags])
    monkeypatch.setenv('LOCAL_RANK', '0')
    runpy.run_path(str(TOOLS / f'{tool}.py'), run_name='__main__')


@pytest.mark.parametrize('tool', MISTAKES)
def test_one_sentence(tool, monkeypatch, tmp_path):
    """Mutation: a tool that calls ``main`` itself ends with a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, tool)
    text = str(end.value.code)
    assert 'nowhere' in text
    assert text.startswith(('FileNotFoundError: ', 'ValueError: '))
    assert text.endswith(' (--traceback shows where)')
    assert 'Traceback' not in text


@pytest.mark.parametrize('tool', ['train', 'sample'])
def test_traceback(tool, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        run(monkeypatch, tool, '--traceback')


def test_every_tool_has_it():
    """The one that only writes a set of digits has no input that could be missing."""
    assert {path.stem for path in TOOLS.glob('*.py')} - MISTAKES.keys() == {'demo', 'make_digits'}
    for path in TOOLS.glob('*.py'):
        assert 'run(' in path.read_text().partition("__name__ == '__main__'")[2], path.name
