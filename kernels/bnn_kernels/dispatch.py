"""Which backend runs a call. Nothing falls back in silence: who stands aside says why, who ran can be asked for."""

import os
import threading
from collections.abc import Callable, Hashable, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache, partial
from itertools import count
from pkgutil import resolve_name
from typing import Any, NamedTuple

# In order of preference, one line per backend: name -> 'module:class', imported when it is first asked for, or the class.
BACKENDS: dict[str, 'str | type[Backend]'] = {
    'triton-tensorcore': 'bnn_kernels.triton.tensorcore:TensorCore',
    'triton-bitplane': 'bnn_kernels.triton.bitplane:Bitplane',
    'triton-popcount': 'bnn_kernels.triton.popcount:Popcount',
    'cpu': 'bnn_kernels.cpu.backend:Cpu',
    'numba': 'bnn_kernels.numba_backend:Numba',
    'reference': 'bnn_kernels.reference:Reference',
}


class Backend:
    """Base of all backends. Operators are methods, named and called as in `bnn_kernels.checks`: those that it can run.

    Arguments arrive checked. A result has the shape that the function of `checks` returns: [N, O, H', W'] in channels-last
    memory, everything else contiguous. `binary_block2d` also serves its in-place form: `out` is None or the tensor that takes
    the stream, which may be the shortcut itself.
    """

    name: str

    def available(self) -> tuple[bool, str]:
        """(True, '') or (False, reason): can this machine run it at all? Asked once per process."""
        return True, ''

    def supports(self, op: str, **call) -> tuple[bool, str]:
        """(True, '') or (False, reason) for this very call. An override asks `super()` first.

        `call` holds the operator's arguments by name, tensors included: look at their metadata only.
        """
        if not hasattr(self, op):
            return False, f'{self.name} does not implement {op}'
        return True, ''

    def bind(self, op: str, fixed: dict, inputs: dict) -> Callable:
        """What runs this call, and others with inputs of the same shapes, strides and dtypes; takes `inputs` by name.

        The tensors of `fixed` may change their values. An override leaves out what need not be done for each call.
        """
        return partial(getattr(self, op), **fixed)

    def join(self, calls: Sequence[Callable], ios: Sequence['OpIO'], inputs: Sequence[Hashable],
             results: Sequence[Hashable]) -> Callable | None:
        """What runs `calls`, which `bind` returned, one after another as one: see `bnn_kernels.join`. None: nothing does."""
        return None


class OpIO(NamedTuple):
    """An operator among others: the value that each of its inputs reads, and the values that it returns, in order.

    None is an input that is None, or a result that nobody wants.
    """

    reads: dict[str, Hashable | None]
    writes: tuple[Hashable | None, ...]


class Selection(NamedTuple):
    """The outcome of one selection."""

    backend: str | None  # the one that runs the call, None where none can
    refusals: dict[str, str]  # the ones preferred to it, each with its reason


class set_backend:
    """Forces a backend by name for the whole process; None chooses automatically. In a `with` statement, until its end.

    The environment variable BNN_KERNELS_BACKEND sets the initial choice. A forced backend that cannot run a call raises there.
    Call it outside compiled functions: the choice is made when an operator runs, compiled or not.

    Raises:
        ValueError: unknown name.
        RuntimeError: the backend is not available on this machine; its reason is given.

    Example:
        >>> with set_backend('reference'):
        ...     words = pack_features(torch.randn(2, 40))
    """

    def __init__(self, name: str | None):
        global _forced
        if name is not None:
            backend, reason = _load(_path(name))
            if backend is None:
                raise RuntimeError(f'Backend {name!r} is not available: {reason}. set_backend(None) chooses automatically.')
        self.previous, _forced = _forced, name

    def __enter__(self):
        return self

    def __exit__(self, *error):
        global _forced
        _forced = self.previous


def register_backend(name: str, backend: str | type[Backend], before: str | None = 'reference') -> None:
    """Adds a backend to those that are asked, from now on and in operators that ran already.

    Args:
        name: what `last_backend` and `set_backend` call it; also its attribute `name`.
        backend: a subclass of `Backend`, or 'module:class', imported when it is first asked for.
        before: the known backend that it is preferred to; None puts it behind all others.

    Raises:
        ValueError: the name is taken, or `before` is not known.

    Example:
        >>> register_backend('mine', 'my_package.backend:Mine', before='cpu')
    """
    if name in BACKENDS:
        raise ValueError(f'A backend {name!r} is registered already: choose another name.')
    if before is not None:
        _path(before)
    known = list(BACKENDS.items())
    place = len(known) if before is None else list(BACKENDS).index(before)
    known.insert(place, (name, backend))
    BACKENDS.clear()
    BACKENDS.update(known)


def available_backends() -> dict[str, str]:
    """Every known backend in order of preference, with 'available' or the reason why it is not.

    Example:
        >>> available_backends()['reference']
        'available'
    """
    loaded = {name: _load(path) for name, path in BACKENDS.items()}
    return {name: 'available' if backend else reason for name, (backend, reason) in loaded.items()}


def last_backend(op: str | None = None) -> str | None:
    """Name of the backend that ran last in this thread, or that ran operator `op` last; None before the first call.

    Example:
        >>> with set_backend('reference'):
        ...     words = pack_features(torch.randn(2, 40))
        >>> last_backend('pack_features')
        'reference'
    """
    return getattr(_last, op or 'any', None)


@contextmanager
def recorded():
    """Collects {operator: backend} of the calls inside, in this thread; filled at the end."""
    before, ran = dict(vars(_last)), {}
    vars(_last).clear()
    try:
        yield ran
    finally:
        ran.update((op, name) for op, name in vars(_last).items() if op != 'any')
        vars(_last).update(before | vars(_last))


def explain(run: Callable, *inputs) -> dict[str, Selection]:
    """Runs `run(*inputs)`, for example a packed layer: which backend ran each operator, and why those preferred to it did not.

    Backends are chosen anew for it, so it is slower than the call alone. An operator that runs several times is told of once,
    as it ran last; only the calling thread is looked at. Raises what `run` raises.

    Example:
        >>> why = explain(pack_features, torch.randn(2, 40))
        >>> why['pack_features'].backend == last_backend('pack_features')
        True
    """
    before, why = getattr(_explaining, 'why', None), {}
    _explaining.why = why
    try:
        with chosen_anew():
            run(*inputs)
    finally:
        _explaining.why = before
    return why


@contextmanager
def chosen_anew(machine: bool = False):
    """Inside, operators ask all backends again, and nothing that was chosen inside is taken after it.

    Args:
        machine: the machine seems to be another one inside, so backends are asked again whether they are available.
    """
    global _round
    before, _round = _round, next(_rounds)
    if machine:
        _load.cache_clear()
    try:
        yield
    finally:
        _round = before
        if machine:
            _load.cache_clear()


def selection(op: str, **call) -> Selection:
    """Which backend would run this call, and why those preferred to it would not. `call`: the operator's arguments by name.

    Example:
        >>> x_words, w_words = pack_features(torch.randn(2, 40)), pack_weight(torch.randn(3, 40))
        >>> backend, refusals = selection('binary_linear', x_words=x_words, w_words=w_words, features=40)
        >>> refusals['triton-tensorcore']  # None where that one would run
        '...'
    """
    refusals = {}
    for name in BACKENDS if _forced is None else [_forced]:
        backend, reason = _load(_path(name))
        if backend is not None:
            able, reason = backend.supports(op, **call)
            if able:
                return Selection(name, refusals)
        refusals[name] = reason
    return Selection(None, refusals)


def bind(op: str, fixed: dict, inputs: dict) -> Callable[..., Any]:
    """What runs this call, and others of its kind, on the first backend that can, and notes it; takes `inputs` by name.

    Arguments are checked. Raises RuntimeError with the reason of every backend asked where none can, which for a forced one is
    that one.
    """
    name, backend = _chosen(op, fixed | inputs)
    if (why := getattr(_explaining, 'why', None)) is not None:
        why[op] = selection(op, **fixed, **inputs)
    operator = backend.bind(op, fixed, inputs)

    def call(**inputs):
        result = operator(**inputs)
        setattr(_last, op, name)
        _last.any = name
        return result

    call.dispatched = (name, backend), op, operator
    return call


def join(calls: Sequence[Callable], ios: Sequence[OpIO], inputs: Sequence[Hashable],
         results: Sequence[Hashable]) -> Callable | None:
    """Operators that follow each other, as one call; None where their backend cannot, or where they have several.

    Args:
        calls: what `PreparedOp.choose` returned for each. ios: the values that each reads and makes, by any names. A tensor
            that takes a result (`out`) is one value, before and after.
        inputs, results: which of the values come, and which of the made ones go.

    Returns:
        takes tensors as `inputs`, of the kinds for which the calls were chosen, and returns `results`, or None where it cannot
        take them for where they lie. It is good for as long as the bound tensors, and their values, stay as they are.
    """
    backends, ops, operators = zip(*[call.dispatched for call in calls], strict=True)
    if len(set(backends)) > 1:
        return None
    (name, backend), ops = backends[0], list(dict.fromkeys(ops))
    joined = backend.join(operators, ios, inputs, results)
    if joined is None:
        return None

    def call(*tensors):
        out = joined(*tensors)
        for op in ops:
            setattr(_last, op, name)
        _last.any = name
        return out

    return call


def _chosen(op: str, call: dict) -> tuple[str, Backend]:
    for name, backend in _able() if _forced is None else [(_forced, _load(_path(_forced))[0])]:
        if backend is not None and backend.supports(op, **call)[0]:
            return name, backend
    reasons = '; '.join(f'{name}: {reason}' for name, reason in selection(op, **call).refusals.items())
    if _forced is not None:
        raise RuntimeError(f'The forced backend cannot run {op} here ({reasons}). set_backend(None) lets all be asked.')
    raise RuntimeError(f'No backend can run {op} here ({reasons}).')


def choice() -> tuple[str | None, int, int]:
    """What the selection of a backend depends on beside the call: it holds as long as this is the same."""
    return _forced, len(BACKENDS), _round


_forced: str | None = os.environ.get('BNN_KERNELS_BACKEND') or None  # looked up at the first call: importing stays light
_last, _explaining = threading.local(), threading.local()
_rounds = count(1)
_round = 0  # with another number, all backends are asked again


def _able() -> list[tuple[str, Backend]]:
    """The backends that are available, in order of preference."""
    found = ((name, _load(path)[0]) for name, path in BACKENDS.items())
    return [(name, backend) for name, backend in found if backend is not None]


def _path(name: str) -> 'str | type[Backend]':
    if name not in BACKENDS:
        nearest = get_close_matches(name, BACKENDS, n=1, cutoff=0)
        raise ValueError(f'Unknown backend {name!r} in set_backend, register_backend or BNN_KERNELS_BACKEND: did you mean '
                         f'{nearest[0]!r}? Known are {", ".join(BACKENDS)}.')
    return BACKENDS[name]


@cache
def _load(backend: 'str | type[Backend]') -> tuple[Backend | None, str]:
    """The backend, or None and the reason: its own, or what went wrong when it was imported."""
    try:
        made = (resolve_name(backend) if isinstance(backend, str) else backend)()
        able, reason = made.available()
    except Exception as error:
        return None, f'{type(error).__name__}: {error}'
    return (made if able else None), reason
