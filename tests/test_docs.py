"""What the documents and settings say: files that they name are there, every text uses the terms of the field."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('kernels/*.md'),
                                     *ROOT.glob('benchmarks/**/*.md')))
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
