"""What all tools share: one sentence about a user's mistake, and where it was found for those who want it."""

import sys
from collections.abc import Callable

MISTAKES = (OSError, ValueError, KeyError, RuntimeError, FloatingPointError)


def run(main: Callable[[], object]) -> None:
    """Call ``main``; a mistake ends the program with its sentence and exit code 1, ``--traceback`` with its traceback.

    Args:
        main: parses the arguments of the command line, which are left without ``--traceback``.
    """
    traceback = '--traceback' in sys.argv
    if traceback:
        sys.argv.remove('--traceback')
    try:
        main()
    except MISTAKES as error:
        if traceback:
            raise
        sentence = error.args[0] if isinstance(error, KeyError) and error.args else error
        sys.exit(f'{type(error).__name__}: {sentence} (--traceback shows where)')
