"""What a fused module runs: records in order, over slots. Plain data: which step or operator reads and writes which slots.

Steps that follow each other, and nothing else between them, are one call of their backend: a :class:`Segment`.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from bnn_kernels import PreparedOp, dispatch, input_signature, join
from bnn_kernels.prepared_op import MOST_SIGNATURES

from .steps import Step

UNKNOWN = object()


def nothing() -> None:
    """What a step runs that returns its input as it is."""


class Value(NamedTuple):
    """A value of a program, among the arguments of a record."""

    number: int

    def __repr__(self) -> str:
        return f'v{self.number}'


class Record(NamedTuple):
    """One line of a program.

    Attributes:
        kind: ``'step'``, ``'module'``, ``'function'``, ``'method'`` or ``'constant'``.
        target: name of the step, module, method or constant; the function.
        args, kwargs: numbers, strings, ... and :class:`Value` among them, in tuples, lists, dicts and slices.
        writes: what it makes; a step of words and stream makes two values, in this order.
    """

    kind: str
    target: str | Callable
    args: tuple
    kwargs: dict
    writes: tuple[Value, ...]

    @property
    def reads(self) -> list[Value]:
        return list(dict.fromkeys(values_in((self.args, self.kwargs))))

    def __str__(self) -> str:
        target = self.target if isinstance(self.target, str) else torch.typename(self.target)
        arguments = [*map(repr, self.args), *(f'{key}={value!r}' for key, value in self.kwargs.items())]
        return f'{", ".join(map(repr, self.writes))} = {self.kind} {target}({", ".join(arguments)})'


class Program:
    """Records, and what links them to the modules of a model. It is called with the values ``v0``, ``v1``, ... in order.

    Args:
        inputs: how many values it is called with.
        records: in order.
        result: what it returns: values in tuples, lists and dicts.
        steps: by target.
        held: modules and constants, by target.

    Attributes:
        calls: what runs, in order: segments, and records that are in none.
        slots: the place of each value. Values that do not live at the same time share one.
    """

    def __init__(self, inputs: int, records: Sequence[Record], result, steps: dict[str, Step], held: dict[str, object]):
        self.inputs, self.records, self.result, self.steps = inputs, list(records), result, steps
        self.segments: list[Segment] = []
        self.calls = self.link(held)
        self.slots = self.plan()
        self.code = [(call.run, [self.slots[v] for v in call.reads], [self.slots[v] for v in call.writes],
                      [self.slots[v] for v in call.frees]) for call in self.calls]
        self.blank = [None] * (max(self.slots.values(), default=-1) + 1 - inputs)
        self.outputs = list(dict.fromkeys(values_in(result)))
        self.single = self.slots[result] if isinstance(result, Value) else None

    def __call__(self, *inputs):
        slots = [*inputs, *self.blank]
        for run, reads, writes, frees in self.code:
            made = run(*[slots[place] for place in reads])
            if len(writes) == 1:
                slots[writes[0]] = made
            else:
                for place, value in zip(writes, made, strict=True):
                    slots[place] = value
            for place in frees:
                slots[place] = None
        if self.single is not None:
            return slots[self.single]
        return filled(self.result, {value: slots[self.slots[value]] for value in self.outputs})

    def __str__(self) -> str:
        first = ', '.join(repr(Value(number)) for number in range(self.inputs))
        return '\n'.join((f'inputs {first}', *map(str, self.records), f'returns {self.result!r}'))

    def link(self, held: dict[str, object]) -> list['Call']:
        """The calls, with what dies behind each."""
        needed, calls, place = set(values_in(self.result)), [], 0
        for joins, records in groupby(self.records, self.may_join):
            records = list(records)
            place += len(records)
            if joins and len(records) > 1:
                after = needed | {v for record in self.records[place:] for v in record.reads}
                self.segments.append(Segment(records, self.steps, after))
                calls.append(self.segments[-1].call())
            else:
                calls += [Call(*bound(record, self.steps, held), record.writes) for record in records]
        alive = set(needed)
        for call in reversed(calls):
            unused = {v for v in call.writes if v not in alive}
            last = [v for v in dict.fromkeys(call.reads) if v not in alive]
            alive |= set(call.reads)
            call.frees = [*last, *unused]
        return calls

    def may_join(self, record: Record) -> bool:
        return record.kind == 'step' and self.steps[record.target].joins

    def plan(self) -> dict[Value, int]:
        """A slot for each value, used again when its value is dead."""
        slots, free, most = {Value(i): i for i in range(self.inputs)}, [], self.inputs
        for call in self.calls:
            for value in call.writes:
                slots[value] = free.pop() if free else most
                most = max(most, slots[value] + 1)
            free += [slots[value] for value in call.frees if value.number >= self.inputs]
        return slots


class Call:
    """A function, the values that it is called with, and those that it returns."""

    def __init__(self, run: Callable, reads: list[Value], writes: Sequence[Value]):
        self.run, self.reads, self.writes, self.frees = run, reads, writes, []


def bound(record: Record, steps: dict[str, Step], held: dict[str, object]) -> tuple[Callable, list[Value]]:
    """The function that runs a record, and what it is called with."""
    target, args, kwargs, reads = record.target, record.args, record.kwargs, record.reads
    if record.kind == 'constant':
        return (lambda: held[target]), []
    call = steps.get(target) if record.kind == 'step' else held[target] if record.kind == 'module' else target
    if record.kind == 'method':
        def call(x, *args, **kwargs):
            return getattr(x, target)(*args, **kwargs)
    if not kwargs and list(args) == reads:
        return call, reads

    def run(*values):
        known = dict(zip(reads, values, strict=True))
        return call(*filled(args, known), **filled(kwargs, known))

    return run, reads


def values_in(arguments) -> Iterator[Value]:
    """The values among arguments, in order."""
    if isinstance(arguments, Value):
        yield arguments
    elif isinstance(arguments, slice):
        yield from values_in((arguments.start, arguments.stop, arguments.step))
    elif isinstance(arguments, dict):
        yield from values_in(list(arguments.values()))
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from values_in(argument)


def filled(arguments, known: dict[Value, object]):
    """The arguments, with what the values are."""
    if isinstance(arguments, Value):
        return known[arguments]
    if isinstance(arguments, slice):
        return slice(*filled((arguments.start, arguments.stop, arguments.step), known))
    if isinstance(arguments, dict):
        return {key: filled(argument, known) for key, argument in arguments.items()}
    if isinstance(arguments, tuple | list):
        parts = [filled(argument, known) for argument in arguments]
        if isinstance(arguments, list):
            return parts
        return type(arguments)(*parts) if hasattr(arguments, '_fields') else tuple(parts)
    return arguments


class Segment:
    """Steps without anything between them. Inputs with a new signature run step by step, and so do all while a step has hooks.

    Args:
        records: of steps that ``joins``.
        steps: by target.
        needed: values that are read behind it.

    Attributes:
        known: what is made of the steps for each kind of input. It is good until one of them is prepared anew.
    """

    def __init__(self, records: Sequence[Record], steps: dict[str, Step], needed: set[Value]):
        self.lines = [(steps[record.target], list(record.args), record.writes) for record in records]
        made = {value for _, _, writes in self.lines for value in writes}
        self.inputs = list(dict.fromkeys(v for _, reads, _ in self.lines for v in reads if v not in made))
        self.outputs = [v for _, _, writes in self.lines for v in writes if v in needed]
        self.hooks = [hooks for step, _, _ in self.lines for hooks in (step._forward_hooks, step._forward_pre_hooks)]
        self.known: dict[tuple, Callable[..., list[Tensor] | None] | None] = {}

    def call(self) -> Call:
        if len(self.outputs) == 1:
            return Call(lambda *tensors: self(*tensors)[0], self.inputs, self.outputs)
        return Call(self, self.inputs, self.outputs)

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        if any(self.hooks) or not PreparedOp.direct(tensors[0]):
            return self.one_by_one(tensors)
        key = dispatch.choice(), *[input_signature(x) for x in tensors]
        call = self.known.get(key, UNKNOWN)  # one look: another thread may clear them
        if call is UNKNOWN:
            return self.first(key, tensors)
        results = None if call is None else call(*tensors)
        return self.one_by_one(tensors) if results is None else results

    def one_by_one(self, tensors: Iterable[Tensor], called: Callable[..., None] | None = None) -> list[Tensor]:
        """``called(step, result, arguments)`` is told of each step."""
        values = dict(zip(self.inputs, tensors, strict=True))
        for step, reads, writes in self.lines:
            arguments = [values[v] for v in reads]
            result = step(*arguments)
            values.update(zip(writes, result if len(writes) > 1 else (result,), strict=True))
            if called is not None:
                called(step, result, arguments)
        return [values[v] for v in self.outputs]

    def first(self, key: tuple, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        calls: list[Callable | None] = []  # what ran each step; None where it has gone another way than its ``prepared_op``

        def note(step: Step, result, arguments: list[Tensor]) -> None:
            if result is arguments[0]:
                calls.append(nothing)
                return
            try:
                calls.append(step.prepared_op.choose(step.io(result, *arguments).reads))
            except (TypeError, ValueError):  # of the checks: a stream in another dtype or shape than usual
                calls.append(None)

        results = self.one_by_one(tensors, note)
        if len(self.known) >= MOST_SIGNATURES:
            self.known.clear()
        self.known[key] = None if None in calls else self.joined(calls, results)
        return results

    def joined(self, calls: list[Callable], examples: list[Tensor]) -> Callable[..., list[Tensor] | None] | None:
        """The calls of the steps as one; it returns what has the shapes of the examples."""
        names: dict[Value, Hashable] = {value: value for value in self.inputs}  # one where memory is one
        ios = []
        for (step, reads, writes), run in zip(self.lines, calls, strict=True):
            arguments = [names[v] for v in reads]
            if run is nothing:
                names[writes[0]] = arguments[0]
                continue
            names.update(zip(writes, writes, strict=True))
            if step.in_place:
                names[writes[-1]] = arguments[1]
            out = tuple(names[v] for v in writes)
            ios.append(step.io(out if len(out) > 1 else out[0], *arguments))
        if not ios:  # all return what they are given
            return None
        results = [names[v] for v in self.outputs]
        made = list(dict.fromkeys(result for result in results if result not in self.inputs))
        call = join([run for run in calls if run is not nothing], ios, self.inputs, made)
        features = any(not step.is_conv for step, _, _ in self.lines)
        if call is None or (made == results and not features):
            return call
        shapes = [(x.shape, x.stride()) for x in examples]

        def as_known(*tensors: Tensor) -> list[Tensor] | None:
            new = call(*tensors)
            if new is None:
                return None
            values = dict(zip([*self.inputs, *made], [*tensors, *new], strict=True))
            found = [values[result] for result in results]
            if features:  # operators make images of them
                found = [x if x.shape == shape else x.as_strided(shape, stride)
                         for x, (shape, stride) in zip(found, shapes, strict=True)]
            return found

        return as_known

