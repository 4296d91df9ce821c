"""``bnn`` and the files in ``tools/``, which are its commands one by one; what all of them share.

A user's mistake ends a command with one sentence, ``--traceback`` shows where; ``--quiet`` leaves out progress bars.
"""

import argparse
import ast
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from .. import progress
from ..version import __version__

# name -> module in .commands, in the order of the help; the first line of the docstring of a module is its help
COMMANDS = {name: name.replace('-', '_') for name in (
    'demo', 'train', 'test', 'predict', 'pack', 'verify', 'convert', 'summary', 'benchmark', 'train-diffusion', 'sample',
    'sample-text', 'import', 'export', 'zoo', 'make-digits', 'make-clips', 'doctor')} | {'import': 'import_checkpoint'}
MISTAKES = (OSError, ValueError, KeyError, RuntimeError, FloatingPointError, ModuleNotFoundError)
# import name -> the extra of the package that brings it
EXTRAS = {'mmengine': 'mmdet', 'mmcv': 'mmdet', 'mmdet': 'mmdet', 'cv2': 'mmdet', 'diffusers': 'diffusers',
          'accelerate': 'diffusers', 'torchmetrics': 'diffusers', 'sklearn': 'report', 'jinja2': 'report',
          'matplotlib': 'report', 'pyarrow': 'classification', 'triton': 'triton', 'numba': 'numba', 'tensorboard': 'mmdet'}


def bnn(argv: list[str] | None = None) -> None:
    """The console script."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['--version']:
        print(__version__)
    elif not argv or argv[0] in ('-h', '--help'):
        print(usage())
    elif argv[0] not in COMMANDS:
        from ..binarize.lookup import unknown
        sys.exit(f'{unknown("command", argv[0], COMMANDS)} (bnn --help lists them)')
    else:
        run(lambda rest: command(argv[0], rest, f'bnn {argv[0]}'), argv[1:])


def usage() -> str:
    lines = [f'  {name:<16} {summary_of(module)}' for name, module in COMMANDS.items()]
    return '\n'.join(['usage: bnn COMMAND ...   (bnn COMMAND --help: its arguments)', '', *lines, '',
                      '  --traceback      with any command: where an error comes from',
                      '  --quiet          with any command: no progress bars'])


def summary_of(module: str) -> str:
    """The first line of the docstring of a command, which is not imported for it."""
    text = Path(__file__).with_name('commands').joinpath(f'{module}.py').read_text()
    return ast.get_docstring(ast.parse(text)).partition('\n')[0]


def tool(module: str) -> None:
    """What a file in ``tools/`` calls: the command under the name of mmdet's tool."""
    run(lambda rest: command(module, rest, f'{module}.py'), sys.argv[1:])


def command(name: str, argv: list[str], program: str) -> int | None:
    """Parse the arguments of a command and call it."""
    module = import_module(f'.commands.{COMMANDS.get(name, name)}', __package__)
    if hasattr(module, 'forward'):  # it has a parser of its own
        return module.forward(argv)
    parser = argparse.ArgumentParser(program, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.arguments(parser)
    args = parser.parse_args(argv)
    if hasattr(args, 'local_rank'):
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    try:
        return module.main(**vars(args))
    except argparse.ArgumentError as error:  # flags that do not fit together
        parser.error(str(error))


def run(main: Callable[[list[str]], int | None], argv: list[str]) -> None:
    """Call ``main`` with ``argv`` without the flags that all commands have, and exit with the status that it returns.

    A mistake ends the program with its sentence and exit code 1, ``--traceback`` with its traceback.
    """
    flags = {flag: flag in argv for flag in ('--traceback', '--quiet')}
    progress.SHOWN = not flags['--quiet']
    try:
        status = main([word for word in argv if word not in flags])
    except MISTAKES as error:
        if flags['--traceback']:
            raise
        sys.exit(f'{type(error).__name__}: {sentence(error)} (--traceback shows where)')
    except KeyboardInterrupt:
        sys.exit(130)
    if status:
        sys.exit(status)


def sentence(error: Exception) -> str:
    """What an exception says, in one line; a missing package with the command that installs it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    extra = EXTRAS.get((getattr(error, 'name', None) or '').partition('.')[0])
    return re.sub(r'\s*\n\s*', ' ', text.strip()) + (f": pip install 'bnn_plugins[{extra}]'" if extra else '')


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--cfg-options', nargs='+', action=Overrides, help='overrides of the config, key=value')


class Overrides(argparse.Action):
    """mmengine's ``DictAction``, which is imported when the flag is used."""

    def __call__(self, parser, namespace, values, option_string=None):
        from mmengine.config import DictAction
        DictAction([], self.dest)(parser, namespace, values, option_string)


def add_launcher(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)
