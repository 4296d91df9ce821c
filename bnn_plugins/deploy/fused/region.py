"""What a module of a fused model runs in the place of its forward: the program for this kind of call."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import CodeType
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from ..packed import PackedLayer
from . import events
from .graph import Argument, Nothing, Untraceable, arguments_of, input_channels
from .plan import Options, Plan

MOST_PLANS = 8  # for kinds of calls
UNKNOWN = object()


class Entry(NamedTuple):
    """What runs calls of one kind. Its inputs are these arguments, by place or name; None: all of them in order."""

    plan: Plan
    inputs: list[int | str] | None

    def tensors(self, args: tuple, kwargs: dict) -> Sequence:
        """The inputs of the program, in order; maps one by one."""
        if self.inputs is None:
            return args
        found = [args[at] if isinstance(at, int) else kwargs[at] for at in self.inputs]
        return [x for value in found for x in (value if isinstance(value, list | tuple) else (value,))]


class FusedForward:
    """An attribute of the instance in the place of a method, so that hosts call the module as ever.

    It is frozen: what changes the module is an event (:mod:`.events`), and the next call folds again, or traces again. A copy
    or an unpickled one makes its programs again when it is first called.

    Attributes:
        plan: for the kind of call that is traced when the model is fused: all arguments without a default are tensors.
        entries: what runs each kind of call that has come; None: the method itself.
    """

    def __init__(self, module: nn.Module, name: str, method: str, options: Options):
        self.module, self.name, self.method, self.options = module, name, method, options
        self.plan: Plan | None = None
        self.said: set = set()
        self.forget()

    def forget(self) -> None:
        self.plans: list[Plan] = []
        self.entries: dict[tuple, Entry | None] = {}
        self.event = ''

    def __getstate__(self) -> dict:
        return {key: vars(self)[key] for key in ('module', 'name', 'method', 'options')}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, plan=None, said=set())
        self.forget()

    @property
    def __wrapped__(self) -> Callable:  # its signature is this one's
        return self.original

    @property
    def __code__(self) -> CodeType:  # torch.export asks where a forward was written
        return self.original.__code__

    @property
    def original(self) -> Callable:
        return getattr(type(self.module), self.method).__get__(self.module)

    @property
    def steps(self) -> dict:
        return self.up_to_date().plan.steps

    def __call__(self, *args, **kwargs):
        if not self.module.training:
            entry = self.compiled(args, kwargs) if torch.compiler.is_compiling() else self.entry(args, kwargs)
            if entry is not None and entry.plan.may_run():
                plan, tensors = entry.plan, entry.tensors(args, kwargs)
                if not plan.fits(tensors):
                    self.say_once('channels', 'is called with other channels than it says')
                elif not (torch.is_grad_enabled() and plan.wants_gradients(tensors)):
                    try:
                        with nullcontext() if not torch.is_grad_enabled() else torch.no_grad():
                            return plan.program(*tensors)
                    except Nothing as found:
                        self.trace_again(plan, found)
                        return self(*args, **kwargs)
                else:
                    self.say_once('gradients', 'is called where gradients are wanted, which a fused program has not')
        return self.original(*args, **kwargs)

    def compiled(self, args: tuple, kwargs: dict) -> Entry | None:
        """Code that is being compiled sees the first plan alone, called with its arguments in order."""
        if self.plan is None or self.plan.program is None or kwargs or len(args) != len(self.plan.arguments):
            return None
        if not self.plan.takes(dict(zip(self.plan.arguments, map(described, args), strict=True))):
            return None
        return Entry(self.plan, None if all(isinstance(x, Tensor) for x in args) else list(range(len(args))))

    def entry(self, args: tuple, kwargs: dict) -> Entry | None:
        self.up_to_date()
        key = (*map(kind_of, args), *[(name, kind_of(value)) for name, value in kwargs.items()])
        entry = self.entries.get(key, UNKNOWN)
        return self.learn(key, args, kwargs) if entry is UNKNOWN else entry

    def up_to_date(self) -> 'FusedForward':
        if self.plan is None or self.event:
            self.follow()
        return self

    def changed(self, module: nn.Module, what: str) -> None:
        """Of :mod:`.events`. The strongest of several events is noted."""
        if what == 'tensors' and not any(m is module for plan in self.plans for m in plan.folded) and not any(
                plan.has_constants for plan in self.plans):
            return
        self.event = max(self.event, what, key=('', 'moved', 'tensors', 'modules').index)

    def follow(self) -> None:
        """Fold or trace again, after an event."""
        event, self.event = self.event, ''
        if self.plan is not None and event == 'moved' and not any(plan.has_moved() for plan in self.plans):
            return
        again = self.plan is None or event == 'modules' or any(
            plan.has_constants or not plan.usable or (event == 'moved' and plan.stems) for plan in self.plans)
        if again:
            self.build()
        else:
            for plan in self.plans:
                plan.prepare()

    def build(self) -> None:
        """Trace for the kind of call that is to be expected.

        Raises:
            Untraceable: when torch.fx cannot follow the method.
        """
        self.forget()
        last = None
        for given in expected(self.module, self.method):
            try:
                self.plan = self.add(given)
                return
            except Untraceable as error:
                last = last or error
        raise last or Untraceable('', 'it has no argument that must be given')

    def trace_again(self, plan: Plan, found: Nothing) -> None:
        """Put another plan in the place of ``plan``: one that knows that a module returns None."""
        try:
            new = self.add(plan.traced, plan.nothings | {found.place})
        except Untraceable as error:
            plan.usable = False
            self.say_once(found.place, f'gets None from {found.place[0]}, and cannot be traced so ({error.why})')
            return
        self.plans.remove(plan)
        self.plan = new if self.plan is plan else self.plan
        self.entries.clear()

    def add(self, given: dict[str, Argument], nothings: frozenset[tuple[str, int]] = frozenset()) -> Plan:
        with torch.no_grad():
            plan = Plan(self.module, self.name, self.method, given, self.options, nothings)
        self.plans.append(plan)
        events.watch(self, self.module.modules(), plan.folded)
        return plan

    def learn(self, key: tuple, args: tuple, kwargs: dict) -> Entry | None:
        """What runs calls of a kind that has not come before."""
        bound = inspect.signature(self.original).bind(*args, **kwargs).arguments
        names, defaults = arguments_of(getattr(type(self.module), self.method))
        given = {name: described(value) if name in names or name in defaults else None for name, value in bound.items()
                 if name not in defaults or not is_default(value, defaults[name])}
        entry = None
        plan = next((plan for plan in self.plans if plan.takes(given)), None)
        why = ''
        if plan is None and all(argument is not None for argument in given.values()) and len(self.plans) < MOST_PLANS:
            try:
                plan = self.add(given)
            except Untraceable as error:
                why = f' ({error.why})'
        if plan is None:
            if not any(isinstance(value, fx.Proxy) for value in bound.values()):  # a trace of what surrounds it goes through
                self.say_once(key, f'is called with {self.difference(given)}, but was traced without{why}')
        elif plan.program is not None:
            order = list(inspect.signature(self.original).parameters)
            places = [order.index(name) if order.index(name) < len(args) else name for name in plan.inputs]
            plainly = not kwargs and places == list(range(len(args))) and not any(isinstance(x, list | tuple) for x in args)
            entry = Entry(plan, None if plainly else places)
        self.entries[key] = entry
        return entry

    def difference(self, given: dict[str, Argument | None]) -> str:
        """In what a call differs from the one that was traced, in words."""
        for name, argument in self.plan.arguments.items():
            if argument.kind == 'maps' and (name not in given or not argument.takes(given[name])):
                return f'something else than {argument.length} maps'
        traced = self.plan.arguments
        return ', '.join(name for name, argument in given.items() if name not in traced or not traced[name].takes(argument))

    def say_once(self, key: object, what: str) -> None:
        if torch.compiler.is_compiling() or key in self.said:
            return
        self.said.add(key)
        warnings.warn(f'fused {self.name or type(self.module).__name__} {what}: it runs unfused', stacklevel=4)


def expected(module: nn.Module, method: str) -> list[dict[str, Argument]]:
    """What calls a method is probably called with: tensors, or behind the first of them numbers, or the maps of all levels."""
    if isinstance(module, PackedLayer):
        return [{'input': Argument('tensor')}]
    try:
        names, defaults = arguments_of(getattr(type(module), method))
    except ValueError as error:
        raise Untraceable('', f'ValueError: {error}') from error
    modes = [name for name, default in defaults.items() if isinstance(default, str)]
    if modes:
        raise Untraceable('', f'ValueError: its argument {modes[0]} is a str, so that what it computes depends on it')
    channels = input_channels(module) if method == 'forward' else None
    several = isinstance(channels, list | tuple)
    first = {name: Argument('maps', length=len(channels)) if several else Argument('tensor') for name in names[:1]}
    found = [first | {name: Argument(kind) for name in names[1:]} for kind in ('tensor', 'number')[:len(names)]]
    levels = len(getattr(getattr(module, 'prior_generator', None), 'strides', ()))  # of a dense head in OpenMMLab
    if levels and method == 'forward' and len(names) == 1 and not several:
        found.append({names[0]: Argument('maps', length=levels)})
    return found


def kind_of(value: object) -> object:
    """What decides which program an argument needs."""
    if isinstance(value, Tensor):
        return value.dim()
    if isinstance(value, list | tuple):
        return ('maps', len(value)) if all(isinstance(x, Tensor) for x in value) else tuple
    if value is None or isinstance(value, bool | str):
        return 'constant', value
    return 'number' if isinstance(value, int | float) else type(value)


def described(value: object) -> Argument | None:
    """What is known of an argument; ``None`` for what no program takes."""
    kind = kind_of(value)
    if isinstance(kind, int):
        return Argument('tensor', rank=kind)
    if kind == 'number':
        return Argument('number')
    if isinstance(kind, tuple):
        return Argument('maps', length=kind[1]) if kind[0] == 'maps' else Argument('constant', value=value)
    return None


def is_default(value: object, default: object) -> bool:
    """Numbers never are: a call of the same kind has another."""
    return (value is None or isinstance(value, bool | str)) and type(value) is type(default) and value == default
