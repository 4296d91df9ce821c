"""Mutation testing from a committed list: each entry changes one line, and its mirrored tests have to fail. ``make mutate``.

``tests/mutations/PACKAGE.toml`` holds the entries of a package:

    [[mutation]]
    file = 'bnn_plugins/engine/amp.py'
    before = "torch.autocast('cpu', torch.bfloat16)"  # must be in the file exactly once
    after = "torch.autocast('cpu', torch.float16)"
    tests = 'tests/test_engine/test_amp.py'  # arguments of pytest
    equivalent = 'the reason'  # optional: no test can notice, so it is not run

Outcomes are ``caught``, ``survived``, ``equivalent``, ``stale`` (the line is not there exactly once, the changed file does not
compile, or there are no such tests) and ``red`` (the tests fail without the change, too). Mutations run in copies of the
checkout, uncommitted files included. Outcomes are kept in ``.cache/mutations.json`` until the entry, the changed file or its
tests change, so an interrupted run continues.
"""

import argparse
import hashlib
import json
import os
import queue
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUTCOMES = ('caught', 'survived', 'equivalent', 'stale', 'red')
ENGINE = Path('kernels/bnn_kernels/cpu')
COMPILE = shlex.split('g++ -std=c++20 -O1 -g0 -fPIC -fvisibility=hidden -ffp-contract=off -fopenmp -w')


def digest(*parts: str | bytes) -> str:
    return hashlib.sha256(b'\0'.join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()[:16]


def mutated(text: str, before: str, after: str) -> str | None:
    """``text`` with ``before`` replaced; ``None`` unless it is there exactly once."""
    return text.replace(before, after) if text.count(before) == 1 and before != after else None


class Checkout:
    """A copy of the repository in which one mutation at a time is tried."""

    def __init__(self, root: Path, folder: Path):
        self.folder = folder
        for name in tracked(root):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target, follow_symlinks=False)
        if (root / ENGINE / '_engine.so').exists():
            shutil.copy2(root / ENGINE / '_engine.so', folder / ENGINE)

    def pytest(self, arguments: str, limit: float | None = None, **environment: str) -> int:
        """Exit status of pytest; 1 when it takes longer than ``limit`` seconds."""
        paths = f'{self.folder / "kernels"}:{self.folder}'
        # Without byte code: a file that changes twice within a second at the same size would run as it was.
        environment = {**os.environ, 'PYTHONPATH': paths, 'PYTHONDONTWRITEBYTECODE': '1', 'OMP_NUM_THREADS': '1'} | environment
        command = [sys.executable, '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *shlex.split(arguments)]
        process = subprocess.Popen(command, cwd=self.folder, env=environment, start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return 1
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def build(self, objects: Path, changed: str | None = None) -> Path | None:
        """The engine as a library, from ``objects`` where they do not include the ``changed`` file; ``None`` on errors."""
        sources, build = self.folder / ENGINE / 'src', self.folder / 'build'
        build.mkdir(exist_ok=True)
        objects.mkdir(parents=True, exist_ok=True)
        linked = []
        for source in sorted(sources.glob('*.cpp')):
            target = objects / f'{source.stem}.o'
            if changed is not None:
                needs = subprocess.run([*COMPILE, '-MM', source], capture_output=True, text=True).stdout
                if Path(changed).name in re.findall(r'[\w.]+', needs):
                    target = build / target.name
            if target.parent == build or not target.exists():
                made = build / 'made.o'
                if subprocess.run([*COMPILE, '-c', source, '-o', made], stderr=subprocess.DEVNULL).returncode:
                    return None
                made.replace(target)
            linked.append(target)
        library = build / 'engine.so'
        return None if subprocess.run([*COMPILE, '-shared', *linked, '-o', library]).returncode else library

    def outcome(self, entry: dict, seconds: float, objects: Path) -> str:
        path = self.folder / entry['file']
        text = path.read_text()
        changed = mutated(text, entry['before'], entry['after'])
        environment = {}
        try:
            path.write_text(changed)
            if path.suffix == '.py':
                compile(changed, path.name, 'exec')
            elif path.suffix in ('.cpp', '.hpp'):
                library = self.build(objects, entry['file'])
                if library is None:
                    return 'stale'
                environment['BNN_KERNELS_CPU_LIBRARY'] = str(library)
            status = self.pytest(entry['tests'], 30 + 10 * seconds, **environment)
            return 'survived' if status == 0 else 'caught'
        except SyntaxError:
            return 'stale'
        finally:
            path.write_text(text)


def tracked(root: Path) -> list[str]:
    """Files of the working tree that git does not ignore."""
    names = subprocess.run(['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'], cwd=root, check=True,
                           capture_output=True, text=True).stdout.split('\0')
    return [name for name in sorted(set(names)) if name and os.path.lexists(root / name)]


def entries(root: Path, packages: list[str], sample: int | None, seed: int) -> list[dict]:
    found = []
    for path in sorted((root / 'tests/mutations').glob('*.toml')):
        if not packages or path.stem in packages:
            listed = [dict(entry, package=path.stem) for entry in tomllib.loads(path.read_text())['mutation']]
            found += listed if sample is None else random.Random(seed).sample(listed, min(sample, len(listed)))
    for entry in found:
        tests = [root / part.partition('::')[0] for part in shlex.split(entry['tests']) if part.startswith('tests')]
        files = [root / entry['file'], *tests]
        entry['missing'] = not tests or not all(file.exists() for file in files)
        contents = [file.read_bytes() for file in files if file.is_file()]
        entry['key'] = digest(entry['before'], entry['after'], entry['tests'], *contents)
    return found


class Session:
    """Tries entries in copies of the checkout, and keeps what came out."""

    def __init__(self, root: Path):
        self.root, self.store = root, root / '.cache/mutations.json'
        self.kept = self.load()
        self.tree = digest(*((root / name).read_bytes() for name in tracked(root) if (root / name).is_file()))
        sources = sorted((root / ENGINE / 'src').glob('*.*pp'))
        self.objects = root / '.cache/mutations' / digest(*(source.read_bytes() for source in sources))
        self.lock, self.checkouts = threading.RLock(), queue.Queue()

    def load(self) -> dict:
        return json.loads(self.store.read_text()) if self.store.exists() else {}

    def keep(self, key: str, value) -> None:
        with self.lock:
            self.kept = self.load() | {key: value}  # another run may have written since
            self.store.parent.mkdir(parents=True, exist_ok=True)
            self.store.with_suffix('.part').write_text(json.dumps(self.kept, indent=0))
            self.store.with_suffix('.part').replace(self.store)

    def baseline(self, checkout: Checkout, tests: str) -> float | None:
        """Seconds that the tests take without a change; ``None`` when they fail."""
        key, start = digest(self.tree, tests), time.monotonic()
        if key not in self.kept and checkout.pytest(tests) == 0:
            self.keep(key, time.monotonic() - start)
        return self.kept.get(key)

    def run(self, entry: dict) -> str:
        if entry['missing'] or mutated((self.root / entry['file']).read_text(), entry['before'], entry['after']) is None:
            return 'stale'
        if 'equivalent' in entry:
            return 'equivalent'
        if entry['key'] not in self.kept:
            checkout = self.checkouts.get()
            try:
                seconds = self.baseline(checkout, entry['tests'])
                if seconds is None:
                    return 'red'
                with self.lock:
                    if not entry['file'].endswith('.py') and checkout.build(self.objects) is None:
                        raise RuntimeError('the engine does not compile, so its mutations cannot run')
                self.keep(entry['key'], checkout.outcome(entry, seconds, self.objects))
            finally:
                self.checkouts.put(checkout)
        return self.kept[entry['key']]


def report(outcomes: list[tuple[dict, str]]) -> None:
    rows = [('package', *OUTCOMES, 'noticed')]
    for package in [*dict.fromkeys(entry['package'] for entry, _ in outcomes), 'all']:
        count = Counter(outcome for entry, outcome in outcomes if package in (entry['package'], 'all'))
        share = f'{count["caught"] / max(count["caught"] + count["survived"], 1):.0%}'
        rows.append((package, *(str(count[outcome]) for outcome in OUTCOMES), share))
    for row in rows:
        print(*(cell.ljust(14) for cell in row))


def main(argv: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('packages', nargs='*', help='names of lists in tests/mutations (default: all)')
    parser.add_argument('--sample', type=int, help='so many mutations of each package')
    parser.add_argument('--seed', type=int, default=0, help='of the sample')
    parser.add_argument('--jobs', type=int, default=1, help='copies of the checkout, each with one test run at a time')
    args = parser.parse_args(argv)
    session, found = Session(root), entries(root, args.packages, args.sample, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for job in range(args.jobs):
            session.checkouts.put(Checkout(root, Path(folder, str(job))))
        outcomes = []
        with ThreadPoolExecutor(args.jobs) as pool:
            for entry, outcome in zip(found, pool.map(session.run, found), strict=True):
                outcomes.append((entry, outcome))
                if outcome not in ('caught', 'equivalent'):
                    print(f'{outcome}: {entry["file"]}: {entry["before"].strip()}  ->  {entry["after"].strip()}', flush=True)
    report(outcomes)
    return int(any(outcome not in ('caught', 'equivalent') for _, outcome in outcomes))


if __name__ == '__main__':
    sys.exit(main())
