"""What the documents and settings say: files and headings that they name are there, commands are those of the tools, code
compiles, every public name is in the reference, every text uses the terms of the field."""

import argparse
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import yaml

import bnn_kernels
import bnn_plugins
from bnn_plugins import binarize, engine, layers
from bnn_plugins.apps import command_line
from tests.documents import BLOCK, DOCUMENTS, ROOT, blocks, commands

FOLDERS = ('benchmarks', 'bnn_plugins', 'configs', 'docs', 'kernels', 'tests', 'tools')
SUFFIXES = {'.py', '.md', '.toml', '.yaml', '.yml', '.cpp', '.hpp', '.j2', '.css', ''}

# Words of ours that the field has other words for, as patterns -> what to write.
WORDS = {
    r'\brooms\b|\broom (above|below)\b|between rooms': 'package',
    r'\bjourneys?\b': 'end to end',
    r'\b(open_)?doors?\b': 'integration, import hook, interface',
    r'\bby birth\b': 'native',
    r'\b(of )?the house\b|\bcontract \d+\b': 'the rule itself; a reader has no list of numbered contracts',
    r'start where numbers may': 'aligned',
    r'\b(nobody|somebody) watches\b': 'no hooks and no dispatch mode; has forward hooks',
    r'chooses what it does': 'changes what forward does',
    r'\bunusual ways?\b': 'what was called, and how',
    r'\bgesture\b': 'the same edit as',
    r'\bsections? [\d.]+ of the design\b|\bthe design\'s\b': 'the number itself; the design is not in the repository',
}


def texts() -> list[Path]:
    """Every file that a person wrote."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob('*') if path.suffix in SUFFIXES and path.is_file()]
    files += [path for path in ROOT.iterdir() if path.suffix in SUFFIXES and path.is_file() and path.name != 'LICENSE']
    skipped = {'.mim', '.git', '__pycache__', 'data', 'results'}
    return [path for path in files if not skipped & set(path.relative_to(ROOT).parts) and path != Path(__file__)]


def named(text: str) -> list[str]:
    """Files and folders of this repository that a document names: links, and paths in backticks or commands."""
    links = [link.split('#')[0] for link in re.findall(r'\]\(([^)\s]+)\)', text) if '://' not in link]
    paths = re.findall(rf'(?<![\w/.-])((?:{"|".join(FOLDERS)})/[\w./-]*[\w/])(?![\w*<{{])', text)
    return [name for name in links + paths if name]


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document):
    missing = [name for name in named(document.read_text())
               if not (ROOT / name).exists() and not (document.parent / name).exists()]
    assert not missing


def slugs(text: str) -> set[str]:
    """The anchors of a document's headings, as mkdocs and GitHub make them."""
    without_code = BLOCK.sub('', text)
    return {re.sub(r'[\s-]+', '-', re.sub(r'[^\w\s-]', '', title.lower()).strip())
            for title in re.findall(r'^#+ (.+)$', without_code, re.MULTILINE)}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_headings_that_a_link_names_exist(document):
    for target, anchor in re.findall(r'\]\(([^)\s#:]*)#([\w-]+)\)', document.read_text()):
        page = (document.parent / target).resolve() if target else document
        assert anchor in slugs(page.read_text()), f'{page.name} has no heading #{anchor}'


@pytest.mark.parametrize('code', [pytest.param(code, id=f'{path.relative_to(ROOT)}:{number}')
                                  for path, number, code in blocks('python')])
def test_code_compiles(code):
    code = code.replace(' = ...', ' = None')
    try:
        compile(code, 'document', 'exec')
    except SyntaxError:
        compile(f'dict(\n{code}\n)', 'document', 'exec')  # a part of a config


class Parsed(Exception):
    pass


@pytest.mark.parametrize('words', [
    pytest.param(shlex.split(command), id=f'{path.relative_to(ROOT)}: {command}') for command, path in commands().items()
    if command.split()[0] in ('python', 'make', 'bnn')])
def test_commands_are_those_of_the_tools(words, monkeypatch, capsys):
    """The tool parses the arguments; nothing is run (tests/test_commands.py runs what can be run)."""
    def parse(self, args=None, namespace=None):
        parse_known(self, args, namespace)
        raise Parsed

    def parse_known(self, args=None, namespace=None):
        namespace, rest = known(self, args, namespace)
        if rest and not forwards:
            self.error(f'unrecognized arguments: {rest}')
        return namespace, rest

    if words[0] == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert {word for word in words[1:] if '=' not in word} <= set(targets)
        return
    if words[1:2] == ['-m'] and 'ArgumentParser' not in (ROOT / (words[2].replace('.', '/') + '.py')).read_text():
        assert len(words) == 3, f'{words[2]} takes no arguments'
        return
    known = argparse.ArgumentParser.parse_known_args
    forwards = words[2:3] == ['benchmarks.diffusion.run']  # it hands the rest to tools/train_diffusion.py
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse)
    monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', parse_known)
    monkeypatch.setattr(sys, 'argv', words[2 if words[1:2] == ['-m'] else 1:])
    try:
        if words[1:2] == ['-m']:
            module = importlib.import_module(words[2])
            if forwards:
                monkeypatch.setattr(module, 'train', lambda flags: None)
                monkeypatch.setattr(argparse.ArgumentParser, 'parse_known_args', parse)
            module.main()
        elif words[0] == 'bnn':
            command_line.bnn(words[1:])
        else:
            runpy.run_path(words[1], run_name='__main__')
    except Parsed:
        return
    except SystemExit as error:
        pytest.fail(f'{capsys.readouterr().err.splitlines()[-1:] or error}')
    pytest.fail('it parses no arguments')


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 100


def test_every_page_is_in_the_navigation():
    text = re.sub(r'!ENV|!!python\S*', '', (ROOT / 'mkdocs.yml').read_text())

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for item in (entry.values() if isinstance(entry, dict) else entry) for page in pages(item)]

    assert sorted(pages(yaml.safe_load(text)['nav'])) == sorted(str(path.relative_to(ROOT / 'docs'))
                                                                for path in (ROOT / 'docs').rglob('*.md'))


def test_every_public_name_is_in_the_reference():
    listed = {line.rsplit('.', 1)[-1] for line in re.findall(r'^::: (\S+)$', (ROOT / 'docs/api.md').read_text(), re.MULTILINE)}
    public = {name for package in (bnn_plugins, bnn_kernels, layers, binarize, engine) for name in package.__all__}
    assert public | set(bnn_plugins._LATER) <= listed | {'__version__'}


@pytest.mark.parametrize('pattern', WORDS)
def test_words(pattern):
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if re.search(pattern, line, re.IGNORECASE):
                found.append(f'{path.relative_to(ROOT)}:{number}: {line.strip()}')
    assert not found, f'write instead: {WORDS[pattern]}\n' + '\n'.join(found)


def test_pre_commit_runs_the_ruff_of_the_constraints():
    version, = re.findall(r'^ruff==(.+)$', (ROOT / 'constraints.txt').read_text(), re.MULTILINE)
    assert f'rev: v{version} ' in (ROOT / '.pre-commit-config.yaml').read_text()
