"""The test suites of the hosts, with binary models in the place of theirs: each ``<host>.toml`` here describes one.

    checkout = 'DIFFUSERS_CHECKOUT'   # environment variable: a checkout of the host, whose package has no tests
    needs = ['parameterized']         # packages that its tests import
    environment = {NAME = 'value'}

    [[suite]]
    plugins = ['diffusers']           # of pytest: modules that are imported before the tests
    binary = 'binary_diffusers'       # the plugin of this folder that makes models binary; none for operators
    files = ['tests/models/unets/test_models_unet_2d.py']

    [[suite.fails]]
    tests = '*::test_name[[]*'        # as in fnmatch, of CLASS::NAME
    reason = 'why it must'

Each file runs twice. What passes without ``binary`` has to pass with it, but for what is listed; what is listed has to fail.
Without such a plugin it runs once, and all has to pass that the host itself does not skip.
"""

import os
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Suite:
    """One file of a host's tests.

    Attributes:
        checkout: folder of the host.
        file: in that folder.
        absent: why it cannot run here, ``''`` where it can.
        plugins, binary: modules, see above; ``binary`` may be ``''``.
        fails: ``{pattern: reason}``.
        environment: variables.
    """

    checkout: Path
    file: str
    absent: str
    plugins: list[str]
    binary: str
    fails: dict[str, str]
    environment: dict[str, str]

    def outcomes(self, folder: Path, binary: bool) -> dict[str, str]:
        """``{CLASS::NAME: 'passed', 'skipped' or the first line of the error}``. ``folder``: for what is written."""
        plugins = [*self.plugins, *([self.binary] if binary else [])]
        report = folder / f'{"binary" if binary else "float"}.xml'
        path = os.pathsep.join([str(HERE), os.environ.get('PYTHONPATH', '')])
        command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-o', 'addopts=', '--basetemp',
                   str(folder / 'made'), *[argument for plugin in plugins for argument in ('-p', plugin)],
                   f'--junitxml={report}', self.file]
        done = subprocess.run(command, cwd=self.checkout, env=os.environ | self.environment | {'PYTHONPATH': path},
                              capture_output=True, text=True)
        if not report.is_file():
            raise RuntimeError(f'{self.file} did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}')
        found = {}
        for case in ElementTree.parse(report).iter('testcase'):
            said = next((child for child in case if child.tag in ('failure', 'error', 'skipped')), None)
            name = f'{case.get("classname", "").rpartition(".")[2]}::{case.get("name")}'
            found[name] = 'passed' if said is None else 'skipped' if said.tag == 'skipped' else said.get('message', '')
        return found

    def compare(self, folder: Path) -> tuple[list[str], list[str], int]:
        """What fails with binary models although it is not listed, the patterns that name nothing that fails, and how many
        tests passed."""
        found = self.outcomes(folder, bool(self.binary))
        if self.binary:
            asked = [name for name, outcome in self.outcomes(folder, False).items() if outcome == 'passed']
        else:
            asked = [name for name, outcome in found.items() if outcome != 'skipped']
        failed = [name for name in asked if found.get(name, 'not run') != 'passed']
        idle = [pattern for pattern in self.fails if any(fnmatchcase(name, pattern) for name in asked)
                and not any(fnmatchcase(name, pattern) for name in failed)]
        unexpected = [f'{name}: {found.get(name, "not run")}' for name in failed
                      if not any(fnmatchcase(name, pattern) for pattern in self.fails)]
        return unexpected, idle, len(asked) - len(failed)


def suites(path: Path) -> list[Suite]:
    """All files that ``path`` lists."""
    host = tomllib.loads(path.read_text())
    checkout = os.environ.get(host['checkout'], '')
    missing = [name for name in host['needs'] if find_spec(name) is None]
    absent = f'{", ".join(missing)} not installed' if missing else ''
    if not checkout or not Path(checkout).is_dir():
        absent = f'{host["checkout"]} names no checkout of {path.stem}'
    return [Suite(Path(checkout), file, absent, suite.get('plugins', []), suite.get('binary', ''),
                  {entry['tests']: entry['reason'] for entry in suite.get('fails', [])}, host.get('environment', {}))
            for suite in host['suite'] for file in suite['files']]
