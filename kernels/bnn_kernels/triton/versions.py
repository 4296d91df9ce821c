"""Which Triton this is, and the names that moved between its versions: the one file that knows them.

Importing it raises ImportError, with the sentence that `available_backends()` then shows, where Triton is missing or too old.
"""

try:
    import triton
except ImportError as error:
    raise ImportError("Triton is not installed: pip install 'bnn_plugins[triton]', or the triton of your torch") from error

OLDEST = (3, 6)
TESTED = ((3, 6), (3, 7), (3, 8), (3, 9))  # make test-triton


def release(version: str) -> tuple[int, int]:
    """'3.7.1+git' to (3, 7)."""
    major, minor, *_ = version.split('.')
    return int(major), int(minor)


def refusal(version: str) -> str:
    """Why the plain Triton kernels cannot run with this version; '' where they can."""
    if release(version) < OLDEST:
        return f'Triton {version} is older than {_dotted(OLDEST)}, the first that these kernels were tested with: upgrade it'
    return ''


def gluon_refusal(version: str = triton.__version__) -> str:
    """Why the Gluon kernels stay off with this version; '' where they run."""
    if release(version) not in TESTED:
        tested = ', '.join(_dotted(release) for release in TESTED)
        return (f'Triton {version} is untested: its Gluon language and its PTX may have changed, so only the plain Triton '
                f'kernels run (tested are {tested})')
    return ''


def gluon_barrier():
    """The barrier of a block: `thread_barrier` in 3.6, `barrier` since."""
    from triton.experimental.gluon import language as gl
    return getattr(gl, 'barrier', None) or gl.thread_barrier


def gluon_async_load():
    """The asynchronous copy from global to shared memory: `async_copy_global_to_shared` up to 3.8, `async_load` since."""
    from triton.experimental.gluon.language.nvidia.ampere import async_copy
    return getattr(async_copy, 'async_load', None) or async_copy.async_copy_global_to_shared


def _dotted(release: tuple[int, int]) -> str:
    return '.'.join(map(str, release))


if reason := refusal(triton.__version__):
    raise ImportError(reason)

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 when Triton was first imported: kernels run in numpy
