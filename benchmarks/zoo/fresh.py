"""A process that knows nothing of a model but the folder that the model was saved to."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

FORK = multiprocessing.get_context('fork')


class Fresh:
    """A process that is forked now, with the imports of this one, and calls ``function`` when it is asked to.

    Made before a model is built, it can only know of the model what was written down. It ends with this process.
    """

    def __init__(self, function: Callable):
        self.here, there = FORK.Pipe()
        FORK.Process(target=self.serve, args=(function, there), daemon=True).start()
        there.close()

    def serve(self, function: Callable, there: Connection) -> None:
        self.here.close()
        try:
            while True:
                try:
                    there.send((function(*there.recv()), None))
                except EOFError:
                    raise
                except Exception as error:  # what a host raises may not be pickled
                    there.send((None, f'{type(error).__name__}: {error}'))
        except EOFError:  # nobody is left who could ask
            pass

    def __call__(self, *args):
        """What ``function`` returns. Raises ``RuntimeError`` with its error; ``EOFError`` when the process died."""
        self.here.send(args)
        found, error = self.here.recv()
        if error:
            raise RuntimeError(f'in a new process: {error}')
        return found
