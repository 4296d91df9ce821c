"""Names in configs: what they build; an unknown one raises and names the nearest known one."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TypeVar

Builder = TypeVar('Builder', bound=Callable)


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
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


def keywords(build: Callable) -> list[str] | None:
    """Names of the arguments of a class or function; ``None``: a function that takes any.

    Of a class whose ``__init__`` hands ``**kwargs`` on, the arguments of the next ``__init__`` in its MRO belong to them.
    """
    inits = [vars(cls)['__init__'] for cls in build.__mro__ if '__init__' in vars(cls)] if isinstance(build, type) else [build]
    names = []
    for init in inits:
        parameters = list(inspect.signature(init).parameters.values())[isinstance(build, type):]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return names if isinstance(build, type) else None


def place(build: Callable) -> str:
    """Where a class or function was written."""
    return f'{build.__module__}.{getattr(build, "__qualname__", build)}'


class Registry:
    """What the names of one kind in a config build.

    Attributes:
        kind (str): what messages call a name, ``'estimator'``.
        base (type): the class of everything that is built.
        common (tuple[str, ...]): options that every name has; the caller of :meth:`build` reads them.
    """

    def __init__(self, kind: str, base: type, common: Iterable[str] = ()):
        self.kind, self.base, self.common = kind, base, tuple(common)
        self._builders: dict[str, Callable] = {}

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Decorator: make a class, or a function that returns what is built, known under ``name``.

        Its arguments are the options that a config may set, ``dict(type=name, **options)``.

        Raises:
            ValueError: for a name that another class or function has.

        Example:
            >>> from bnn_plugins.binarize import Estimator, build_estimator, register_estimator
            >>> @register_estimator('triangle')
            ... class Triangle(Estimator):
            ...     def __init__(self, width: float = 1.0):
            ...         super().__init__()
            ...         self.width = width
            ...
            ...     def surrogate(self, x):
            ...         return (1 - x.abs() / self.width).clamp(min=0)
            >>> build_estimator(dict(type='triangle', width=2.0)).width
            2.0
        """

        def decorate(builder: Builder) -> Builder:
            known = self._builders.setdefault(name, builder)
            if place(known) != place(builder):
                raise ValueError(f'the {self.kind} {name!r} is {place(known)} already')
            self._builders[name] = builder  # of a module that runs again: the new one
            return builder

        return decorate

    def build(self, spec: str | dict, **context):
        """What a name, or ``dict(type=name, **options)``, stands for, made anew.

        Args:
            spec: what a config says.
            context: what the caller knows; a builder gets what it has an argument for, where ``spec`` does not say it.

        Raises:
            TypeError: for a spec of another type, and for a builder that returns something else than :attr:`base`.
            ValueError: for an unknown name or option; the nearest known one is named.
        """
        if not isinstance(spec, str | dict):
            raise TypeError(f'{self.kind} must be a name or dict(type=name, ...), but got {type(spec).__name__}')
        options = {'type': spec} if isinstance(spec, str) else dict(spec)
        name = options.pop('type', None)
        if name not in self._builders:
            raise ValueError(unknown(self.kind, name, self._builders))
        builder = self._builders[name]
        known = keywords(builder)
        if known is not None:
            check_keys(f'option of the {self.kind} {name!r}', options, [*known, *self.common])
            context = {key: value for key, value in context.items() if key in known}
        built = builder(**context | {key: value for key, value in options.items() if key not in self.common})
        if not isinstance(built, self.base):
            raise TypeError(f'the {self.kind} {name!r} must build {self.base.__name__}, but built {type(built).__name__}')
        return built

    def list(self) -> list[str]:
        """The known names.

        Example:
            >>> 'reactnet' in list_methods(), 'approx_sign' in list_estimators()
            (True, True)
        """
        return list(self._builders)
