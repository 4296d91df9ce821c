"""``bnn`` and the tools: a user's mistake is one sentence, or its traceback on request; what the doctor finds."""

import ast
import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bnn_kernels
from bnn_plugins import progress, zoo
from bnn_plugins.apps import command_line, doctor
from bnn_plugins.apps.command_line import bnn, sentence
from bnn_plugins.integrations.import_hooks import ImportHook

TOOLS = Path(__file__).parents[2] / 'tools'
MISTAKES = {'train': ['nowhere.py'], 'test': ['nowhere.py', 'a.pth'], 'pack': ['nowhere.py', 'nowhere.pth', 'a.safetensors'],
            'summary': ['nowhere.py'], 'benchmark': ['nowhere.py'], 'sample': ['nowhere'], 'train_diffusion': ['nowhere.py'],
            'sample_text': ['nowhere.py', 'a.pth'], 'import_checkpoint': ['nowhere.pth', 'out.pth', '--from', 'reactnet'],
            'make_clips': ['nowhere', 'out'], 'predict': ['a.py', 'a.pth', 'nowhere']}


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
        code = ast.unparse(ast.parse(path.read_text()).body[1:])
        assert code == ("from bnn_plugins.apps.command_line import tool\nif __name__ == '__main__':\n"
                        f"    tool('{path.stem}')"), 'a tool contains no logic'


# --- bnn ------------------------------------------------------------------------------------------------------------------

def test_every_command_is_listed_and_has_arguments(capsys):
    bnn(['--help'])
    text = capsys.readouterr().out
    modules = {path.stem for path in Path(command_line.__file__).with_name('commands').glob('[!_]*.py')}
    assert modules == set(command_line.COMMANDS.values())
    for name in command_line.COMMANDS:
        assert f'\n  {name} ' in text
        with pytest.raises(SystemExit) as end:
            bnn([name, '--help'])
        assert end.value.code == 0
    with pytest.raises(SystemExit, match=r"unknown command 'trian'; did you mean 'train'\?"):
        bnn(['trian'])


@pytest.mark.parametrize('name', ['verify', 'convert', 'export'])
def test_commands_without_a_tool(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r'^FileNotFoundError: .*nowhere.* \(--traceback shows where\)$'):
        bnn([name, 'nowhere', *['b', 'c'][:{'verify': 2, 'convert': 1, 'export': 0}[name]]])


def test_what_is_missing_comes_with_the_line_that_installs_it(monkeypatch):
    """Mutation: without ModuleNotFoundError in MISTAKES, a traceback."""
    monkeypatch.setitem(sys.modules, 'mmengine.config', None)
    with pytest.raises(SystemExit, match=r"ModuleNotFoundError: .*mmengine.*: pip install 'bnn_plugins\[mmdet\]' \("):
        bnn(['summary', 'a.py', '--cfg-options', 'a=1'])


def test_the_zoo(capsys):
    bnn(['zoo'])
    assert capsys.readouterr().out == zoo.table() + '\n'
    name = zoo.names()[0]
    bnn(['zoo', 'card', name])
    assert json.loads(capsys.readouterr().out) == zoo.card(name)
    bnn(['zoo', 'path', name])
    assert capsys.readouterr().out == f'{zoo.path(name)}\n'
    with pytest.raises(SystemExit, match=f'^ValueError: bnn zoo path needs a name: one of .*{name}'):
        bnn(['zoo', 'path'])
    with pytest.raises(SystemExit, match=f"^KeyError: the zoo has no model '{name}x': did you mean '{name}'"):
        bnn(['zoo', 'card', name + 'x'])


def test_an_error_of_several_lines_becomes_one():
    assert sentence(RuntimeError('size mismatch:\n\tfor a\n  for b')) == 'size mismatch: for a for b'


def test_help_needs_torch_only():
    code = ("from bnn_plugins.apps.command_line import bnn; import sys; bnn(['--help']); bnn(['--version'])\n"
            "assert not {'mmengine', 'mmdet', 'diffusers', 'mmcv'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_doctor(capsys, monkeypatch):
    """Mutation: state() of a package that is not there is 'done'."""
    monkeypatch.setenv('BNN_PLUGINS_PEFT', '0')
    find = importlib.util.find_spec
    monkeypatch.setattr(doctor, 'find_spec', lambda name: None if name in ('mmdet', 'numba') else find(name))
    monkeypatch.setattr(doctor, 'HOOKS', [*doctor.HOOKS, ImportHook('torch', 'torch.nn.utils.none', 'x', 'NONE', print)])
    assert doctor.examine() == 1, 'the last row cannot work'
    text = capsys.readouterr().out
    assert f'torch          {torch.__version__}' in text
    assert 'numba          missing' in text
    assert "  mmdet: pip install 'bnn_plugins[mmdet]'" in text
    for name in bnn_kernels.available_backends():
        assert f'\n  {name} ' in text
    for words in ('reference            available', 'peft       turned off', 'mmdet      no package',
                  'torch      FAILS: No module', 'mmengine   done       packed'):
        assert words in text, words


# --- progress bars ----------------------------------------------------------------------------------------------------------

def test_bars_only_where_a_terminal_is(capsys, monkeypatch):
    assert list(progress.track(range(3), 'count')) == [0, 1, 2]
    assert capsys.readouterr() == ('', '')
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setattr('rich.console.Console.is_terminal', True)
    assert list(progress.track(iter(range(3)), 'count', 3)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert not out
    assert 'count' in err
    monkeypatch.setattr(progress, 'SHOWN', True)
    with pytest.raises(SystemExit):
        bnn(['export', 'nowhere', '--quiet'])
    capsys.readouterr()
    assert list(progress.track(range(3), 'count')) == [0, 1, 2]
    assert capsys.readouterr() == ('', '')
