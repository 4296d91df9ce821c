"""Names in configs: an unknown one raises and names the nearest known one."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known: ``unknown method 'recuu'; did you mean 'recu'? Known: ...``."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f'; did you mean {near[0]!r}?' if near else '.'
    return f'unknown {kind} {name!r}{hint} Known: {", ".join(known) or "none"}'


def check_keys(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ``ValueError`` for the first of ``given`` that is not among ``known``."""
    known = list(known)
    for name in given:
        if name not in known:
            raise ValueError(unknown(kind, name, known))


def checked_arguments(init: Callable) -> Callable:
    """Decorator of ``__init__``: an unknown keyword raises ``TypeError`` that names the nearest known one.

    Registries hand the keys of a config over as keywords, so this is where a misspelt key arrives.
    """
    known = [name for name, parameter in inspect.signature(init).parameters.items()
             if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)][1:]

    @functools.wraps(init)
    def checked(self, *args, **kwargs):
        for name in kwargs:
            if name not in known:
                raise TypeError(unknown(f'argument of {type(self).__name__}', name, known))
        init(self, *args, **kwargs)

    return checked
