"""Names in configs: an unknown one raises and names the nearest known one."""

import difflib
from collections.abc import Iterable


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
