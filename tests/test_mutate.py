"""The tool for mutations, on a package of two functions in a repository of its own."""

import json
import subprocess
import tomllib

import mutate
import pytest

LIST = """
[[mutation]]
file = 'toy.py'
before = 'a + b'
after = 'a - b'
tests = 'tests/test_toy.py'

[[mutation]]
file = 'toy.py'
before = 'a * b'
after = 'a / b'
tests = 'tests/test_toy.py'

[[mutation]]
file = 'toy.py'
before = 'return'
after = 'yield'
tests = 'tests/test_toy.py'

[[mutation]]
file = 'toy.py'
before = 'a * b'
after = 'b * a'
tests = 'tests/test_toy.py'
equivalent = 'numbers commute'

[[mutation]]
file = 'toy.py'
before = 'a * b'
after = 'a * ('
tests = 'tests/test_toy.py'

[[mutation]]
file = 'toy.py'
before = 'a * b'
after = 'a - b'
tests = 'tests/test_red.py'

[[mutation]]
file = 'toy.py'
before = 'a * b'
after = 'a - b'
tests = 'tests/test_missing.py'
"""


@pytest.fixture
def toy(tmp_path):
    root = tmp_path / 'toy'
    files = {
        'toy.py': 'def add(a, b):\n    return a + b\n\n\ndef times(a, b):\n    return a * b\n',
        'tests/test_toy.py': 'import toy\n\n\ndef test():\n    assert toy.add(1, 2) == 3 and toy.times(1, 1) == 1\n',
        'tests/test_red.py': 'def test():\n    assert False\n',
        'tests/mutations/toy.toml': LIST,
        'tests/mutations/other.toml': LIST[:LIST.index('[[', 5)],
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(['git', 'init', '--quiet', root], check=True)
    return root


def test_outcomes(toy, capsys):
    assert mutate.main(['toy', '--jobs', '2'], toy) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in lines[:-3]] == ['survived', 'stale', 'stale', 'red', 'stale']
    assert lines[0] == 'survived: toy.py: a * b  ->  a / b'
    assert lines[-3].split() == ['package', 'caught', 'survived', 'equivalent', 'stale', 'red', 'noticed']
    assert lines[-2].split() == ['toy', '1', '1', '1', '3', '1', '50%']
    assert (toy / 'toy.py').read_text().count('a + b') == 1, 'mutations are tried in a copy'


def test_an_outcome_is_kept_until_its_files_change(toy, monkeypatch):
    runs = []
    run = mutate.Checkout.pytest
    monkeypatch.setattr(mutate.Checkout, 'pytest', lambda *args, **options: runs.append(args[1]) or run(*args, **options))
    assert mutate.main(['other'], toy) == 0
    assert mutate.main(['other'], toy) == 0
    assert len(runs) == 2, 'once without the change and once with it'
    (toy / 'tests/test_toy.py').write_text('def test():\n    pass\n')
    assert mutate.main(['other'], toy) == 1
    assert len(runs) == 4
    assert 'survived' in json.loads((toy / '.cache/mutations.json').read_text()).values()


def test_a_sample(toy, capsys):
    mutate.main(['--sample', '1', '--seed', '3'], toy)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(('other', 'toy', 'all'))]
    assert [(row[0], sum(map(int, row[1:-1]))) for row in rows] == [('other', 1), ('toy', 1), ('all', 2)]


def test_a_test_that_hangs_notices(toy):
    (toy / 'tests/test_hang.py').write_text('import time\n\n\ndef test():\n    time.sleep(60)\n')
    checkout = mutate.Checkout(toy, toy.parent / 'copy')
    assert checkout.pytest('tests/test_hang.py', limit=2) == 1


@pytest.mark.parametrize('package', sorted(path.stem for path in (mutate.ROOT / 'tests' / 'mutations').glob('*.toml')))
def test_lines_of_the_list_are_there(package):
    entries = tomllib.loads((mutate.ROOT / 'tests' / 'mutations' / f'{package}.toml').read_text())['mutation']
    assert [entry['before'] for entry in entries
            if mutate.mutated((mutate.ROOT / entry['file']).read_text(), entry['before'], entry['after']) is None] == []
