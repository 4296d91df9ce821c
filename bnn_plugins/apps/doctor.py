"""``bnn doctor``: what is installed, what runs on this machine and why the rest does not, what the import hooks changed."""

import os
import platform
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from importlib.util import find_spec

import bnn_kernels

from ..analysis import processor
from ..integrations.import_hooks import HOOKS, ImportHook
from ..version import __version__
from .command_line import EXTRAS

PACKAGES = ('torch', 'numpy', 'safetensors', 'rich', 'wrapt', *EXTRAS)


def examine() -> int:
    """Print the findings; returns the number of import hooks that cannot work with what is installed."""
    print(f'bnn_plugins {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}, '
          f'{processor()}, {os.cpu_count()} cores\n\nPackages')
    missing = {}
    for name in PACKAGES:
        found = installed_version(name)
        print(f'  {name:<14} {found or "missing"}')
        if found is None:
            missing.setdefault(EXTRAS.get(name, ''), []).append(name)
    print('\nBackends of packed layers, best first')
    for name, reason in bnn_kernels.available_backends().items():
        print(f'  {name:<20} {reason}')
    print('\nWhat import bnn_plugins changes in other packages')
    states = [(hook, state(hook)) for hook in HOOKS]
    for hook, text in states:
        print(f'  {hook.host:<10} {text:<10} {hook.effect} ({hook.variable}=0 turns it off)')
    failed = [hook for hook, text in states if text.startswith('FAILS')]
    print('\nMissing' if missing else '\nNothing is missing')
    for extra, names in missing.items():
        print(f"  {', '.join(names)}: pip install 'bnn_plugins{f'[{extra}]' if extra else ''}'")
    return len(failed)


def installed_version(name: str) -> str | None:
    """The version of the distribution that brings the package ``name``; ``None`` where there is none."""
    if find_spec(name) is None:
        return None
    try:
        return version(packages_distributions().get(name, [name])[0])
    except PackageNotFoundError:
        return getattr(import_module(name), '__version__', 'of unknown version')


def state(hook: ImportHook) -> str:
    """``'done'``, or why not; imports the package of the hook, which sets it off."""
    if not hook.enabled:
        return 'turned off'
    if find_spec(hook.host) is None:
        return 'no package'
    if hook.module != 'bnn_plugins' and hook.module not in sys.modules:
        try:
            import_module(hook.module)
        except (ImportError, RuntimeError) as error:
            return f'FAILS: {error}'
    return 'done'
