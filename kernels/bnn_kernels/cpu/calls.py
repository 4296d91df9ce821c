"""Calls of the engine as data: everything worked out for inputs of one kind, but where the tensors lie.

In eager code a small layer would otherwise take longer in Python than in the engine. A `Call` is one operator, a `Program`
several that follow each other, in one call of the engine and with their intermediate results in one piece of memory.
"""

from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from math import prod
from operator import and_
from typing import NamedTuple

import torch
from torch import Tensor

from ..derived import Derived
from ..dispatch import OpIO
from . import engine

# enum Operation of src/driver.hpp
CONV2D, CONV2D_SIGN, BLOCK2D, PACK, DOWNSAMPLE, STEM, QUANTIZE, POOLED2D, POOL2D, PLANES, CONCAT, WEIGHTED_SUM = range(12)
SETTINGS = ('isa', 'threads')
LINE = 64  # bytes; where results of a program start


class Made(NamedTuple):
    """A tensor that a call makes; its strides leave no gaps."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class Code(NamedTuple):
    """Records and their links, as `bnn_run` takes them: addresses and lengths, and what keeps them in memory."""

    arguments: tuple[int, int, int, int]
    records: array
    links: array


class Call:
    """An operator of the engine for inputs of one kind: takes them by name and in order.

    Args:
        operation: of enum Operation. fields: its arguments; a str is filled in at each call: `'isa'`, `'threads'`, or the
            address of the input, of the thing kept, or of the result of that name.
        inputs: examples by name, None for one that is not there. made: what it makes, by name. results: names of what it
            returns; of one, the tensor alone.
        fallback: what runs inputs at addresses that are no multiple of their elements' size. holds: what else must stay alive.
        derived: names of what is derived from weights, once for each. weights: tensors, or names of inputs.
        derive: `(*weights, isa, threads) -> (*addresses, whatever must stay alive)`.
    """

    def __init__(self, operation: int, fields: Sequence[int | str], inputs: dict[str, Tensor | None], made: dict[str, Made],
                 results: Sequence[str], fallback: Callable, holds: object = None, derived: Sequence[str] = (),
                 weights: Sequence[Tensor | str] = (), derive: Callable | None = None):
        self.inputs, self.made, self.fallback, self.holds = tuple(inputs), made, fallback, holds
        self.derived, self.derive = tuple(derived), derive and Derived(derive)
        # Tensors under another name, whose memory stays although `.data` of those given be replaced.
        self.weights: list = [weight if isinstance(weight, str) else weight.detach() for weight in weights]
        self.fields = [len(fields) + 2, operation, *fields]
        self.new = list(made.values())
        # Bits of the addresses of inputs that the engine reads, which must be zero: a multiple of the elements' size.
        self.masks = [x.element_size() - 1 if x is not None and name in fields else 0 for name, x in inputs.items()]
        names = [*SETTINGS, *self.inputs, *self.derived, *made]
        self.results = tuple(results)
        self.code = code_of(*encode(self.fields, lambda name: (names.index(name), 0)))
        places = [*made, *self.inputs]
        self.places, self.only = [places.index(name) for name in results], len(results) == 1
        self.all_fixed = not any(isinstance(weight, str) for weight in weights)
        self.weights_stay = all(isinstance(weight, Tensor) and not weight.is_inference() for weight in weights)

    def __call__(self, **inputs: Tensor | None) -> Tensor | tuple[Tensor, ...]:
        at = [0 if x is None else x.data_ptr() for x in inputs.values()]
        if any(map(and_, at, self.masks)):
            return self.fallback(**inputs)
        settings = engine.isa_number(), torch.get_num_threads()
        weights: list = self.weights if self.all_fixed else [inputs[w] if type(w) is str else w for w in self.weights]
        # First: results beyond memory raise before weights are arranged for as many phases of a transposed convolution.
        made = [torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in self.new]
        *derived, _ = self.derive(weights, settings) if self.derive else (None,)  # the last keeps their memory until the end
        run(self.code, [*settings, *at, *derived, *[x.data_ptr() for x in made]])
        if self.only:
            return made[0]
        tensors = [*made, *inputs.values()]
        return tuple([tensors[place] for place in self.places])


class Program:
    """Calls one after another, as one call of the engine: takes tensors in the order of `inputs`, returns those of `results`.

    See `bnn_kernels.join`. Weights are read when it is first called with an instruction set and a number of threads.
    """

    def __init__(self, calls: Sequence[Call], ios: Sequence[OpIO], inputs: Sequence[Hashable], results: Sequence[Hashable]):
        self.calls = calls
        # Which value each name of a call's record means: what is not wanted, none.
        self.names = [io.reads | dict(zip(call.results, io.writes, strict=True))
                      for call, io in zip(calls, ios, strict=True)]
        made = {names[name]: spec for call, names in zip(calls, self.names, strict=True)
                for name, spec in call.made.items() if names[name] is not None}
        self.new = [made[value] for value in results]
        self.bases = {value: (place, 0) for place, value in enumerate([*inputs, *results])}
        inner = {value: spec.bytes for value, spec in made.items() if value not in self.bases}
        places, self.workspace_bytes = arrange(inner, [list(names.values()) for names in self.names])
        self.bases.update((value, (len(inputs) + len(results), place)) for value, place in places.items())
        self.masks = [max((mask for call, names in zip(calls, self.names, strict=True)
                           for name, mask in zip(call.inputs, call.masks, strict=True) if names[name] == value), default=0)
                      for value in inputs]
        self.codes: dict[tuple[int, int], tuple[Code, list]] = {}

    def link(self, *settings: int) -> tuple[Code, list]:
        """The code, and what must stay alive."""
        records, links, alive = array('q'), array('q'), []
        for call, names in zip(self.calls, self.names, strict=True):
            derived = call.derive(call.weights, settings) if call.derive else (None,)
            known = dict(zip((*SETTINGS, *call.derived), (*settings, *derived[:-1]), strict=True))
            known |= {name: 0 for name, value in names.items() if value is None}
            fields = [known.get(field, field) for field in call.fields]
            own, own_links = encode(fields, lambda name, names=names: self.bases[names[name]])
            own_links[::3] = array('q', [place + len(records) for place in own_links[::3]])
            records, links = records + own, links + own_links
            alive.append(derived)
        return code_of(records, links), alive

    def __call__(self, *tensors: Tensor) -> list[Tensor] | None:
        """None: an input's address is no multiple of its elements' size; nothing ran."""
        at = [x.data_ptr() for x in tensors]
        if any(map(and_, at, self.masks)):
            return None
        settings = engine.isa_number(), torch.get_num_threads()
        if settings not in self.codes:
            self.codes[settings] = self.link(*settings)
        code, _ = self.codes[settings]
        made = [torch.empty_strided(shape, strides, dtype=dtype) for shape, strides, dtype in self.new]
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8)
        run(code, [*at, *[x.data_ptr() for x in made], workspace.data_ptr()])
        return made


def encode(fields: Sequence[int | str], where: Callable[[str], tuple[int, int]]) -> tuple[array, array]:
    """A record and its links; `where` finds base and offset of a name."""
    links = chain.from_iterable((place, *where(field)) for place, field in enumerate(fields) if isinstance(field, str))
    return array('q', [0 if isinstance(field, str) else field for field in fields]), array('q', links)


def code_of(records: array, links: array) -> Code:
    return Code((records.buffer_info()[0], len(records), links.buffer_info()[0], len(links) // 3), records, links)


def arrange(sizes: dict[Hashable, int], uses: Sequence[list[Hashable]]) -> tuple[dict[Hashable, int], int]:
    """Where values lie in one piece of memory, and its bytes, when call number n uses the values `uses[n]`.

    The largest first, each at the lowest place that nothing takes while it lives.
    """
    first, last = {}, {}
    for number, values in enumerate(uses):
        for value in values:
            first.setdefault(value, number)
            last[value] = number
    places, workspace = {}, 0
    for value in sorted(first.keys() & sizes.keys(), key=lambda value: (-sizes[value], first[value])):
        place, size = 0, round_up(sizes[value])
        beside = [other for other in places if first[other] <= last[value] and first[value] <= last[other]]
        for other in sorted(beside, key=places.__getitem__):
            if places[other] - place >= size:
                break
            place = max(place, places[other] + round_up(sizes[other]))
        places[value], workspace = place, max(workspace, place + size)
    return places, workspace


def round_up(size: int) -> int:
    return -(-size // LINE) * LINE


def run(code: Code, bases: list[int]) -> None:
    at = array('q', bases)
    sentence = engine.library().bnn_run(*code.arguments, at.buffer_info()[0])
    if sentence is not None:
        raise RuntimeError(sentence.decode())
