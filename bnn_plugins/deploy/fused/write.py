"""The program of fused steps, from what was matched in a traced graph."""

import operator
from typing import NamedTuple

import torch
from torch import fx, nn

from ...layers.expand import input_copies
from ..packed import PackedConv2d, PackedModule
from .fold import depends_on_input
from .graph import LEAVES, constants_of, module_of, name_of
from .match import Match, Matcher
from .program import Program, Record, Value, values_in
from .steps import CastStep, FormatStep, PackStep, Step

VIEWS = ('view', 'view_as', 'as_strided')  # what is an error, or another thing, in another memory format
KINDS = {'call_module': 'module', 'call_function': 'function', 'call_method': 'method', 'get_attr': 'constant'}


class Place(NamedTuple):
    """What a step stands for in the traced graph: names of the nodes that are its input, its other inputs and its result, and
    which channels of that node the step makes, ``None`` for all."""

    step: Step
    input: str
    others: tuple[str, ...]
    result: str
    channels: slice | None


class Writer:
    """Writes the program.

    Args:
        stream: dtype of the real-valued stream between steps, ``None`` for that of the model.

    Attributes:
        steps: ``{target: Step}``.
        rows: ``{layer name: what it became}``.
        stems: the same for the real convolutions of stems.
        places: of all steps that matches became.
        held: modules and tensors that the program calls and reads, by target.
        shares: whether one step stands for several because their constants were equal.
    """

    def __init__(self, matcher: Matcher, stream: torch.dtype | None):
        self.m, self.root, self.stream = matcher, matcher.root, stream
        self.records: list[Record] = []
        self.count = 0
        self.values: dict[fx.Node, Value] = {}
        self.words: dict[tuple, Value] = {}
        self.casts: dict[fx.Node, Value] = {}
        self.formatted: dict[fx.Node, Value] = {}
        self.steps: dict[str, Step] = {}
        self.made: dict[fx.Node, Step] = {}  # by the node whose stream it writes
        self.rows: dict[str, str] = {}
        self.stems: dict[str, str] = {}
        self.places: list[Place] = []
        self.shared: dict[tuple, Value] = {}  # what steps before a match have made
        self.shares = False
        self.held: dict[str, object] = {}
        self.readers: dict[fx.Node, list[Match]] = {}
        for match in matcher.readers:
            self.readers.setdefault(match.input, []).append(match)

    def run(self) -> Program:
        inputs = [node for node in self.m.graph.nodes if node.op == 'placeholder']
        self.values.update((node, self.new_value()) for node in inputs)
        firsts = {match.nodes[0]: match for match in self.m.readers}
        for node in self.m.graph.nodes:
            match = firsts.get(node)
            if match and match.input in self.m.changed:
                self.pack(match)
            if node in self.m.interior:
                continue
            if node.op == 'output':
                result = fx.node.map_arg(node.args[0], self.as_given)
            elif node in self.m.matches:
                self.write_match(self.m.matches[node])
            elif node.op != 'placeholder':
                self.copy(node)
            if node not in self.m.changed:
                for reader in self.readers.get(node, ()):
                    self.pack(reader)
        return Program(len(inputs), read(self.records, plain(result)), plain(result), self.steps, self.held)

    def new_value(self) -> Value:
        self.count += 1
        return Value(self.count - 1)

    def copy(self, node: fx.Node) -> None:
        """A node that no step stands for."""
        value = self.as_given if minds_strides(self.root, node) else self.host
        args, kwargs = plain(fx.node.map_arg(node.args, value)), plain(fx.node.map_arg(node.kwargs, value))
        self.values[node] = self.new_value()
        self.records.append(Record(KINDS[node.op], node.target, args, kwargs, (self.values[node],)))
        if node.op == 'call_module':
            self.held[node.target] = self.root.get_submodule(node.target)
        elif node.op == 'get_attr':
            owner, _, name = node.target.rpartition('.')
            constants = constants_of(self.m.graph)
            found = node.target in constants
            self.held[node.target] = constants[node.target] if found else getattr(self.root.get_submodule(owner), name)

    def step(self, step: Step, label: str, *arguments: Value, writes: int = 1) -> list[Value]:
        target = f'{len(self.steps)} {label}'
        self.steps[target], step.label = step, label
        made = [self.new_value() for _ in range(writes)]
        self.records.append(Record('step', target, arguments, {}, tuple(made)))
        return made

    def host(self, node: fx.Node) -> Value:
        """The value as modules outside of the fused steps know it."""
        if self.stream is None or node not in self.made or not self.made[node].streams:
            return self.values[node]
        if node not in self.casts:
            self.casts[node], = self.step(CastStep(), f'cast of {node.name}', self.values[node])
        return self.casts[node]

    def as_given(self, node: fx.Node) -> Value:
        """The value as the host knows it, in the memory format in which the model gives it."""
        if node.op == 'placeholder' or (node in self.made and not self.made[node].is_conv):
            return self.host(node)
        if node not in self.formatted:
            step = FormatStep(joins=node in self.made)  # else it may be no tensor
            self.formatted[node], = self.step(step, f'format of {node.name}', self.host(node), Value(0))
            if node in self.m.changed:  # what changes in place is one value
                self.values[node] = self.formatted[node]
        return self.formatted[node]

    def pack(self, match: Match) -> None:
        key = sign_key(match)
        if key not in self.words:
            self.words[key], = self.step(PackStep(match.layer), f'signs of {match.label}'.strip(), self.values[match.input])

    def write_match(self, match: Match) -> None:
        result = match.result
        consumer = self.consumer_of(match) if match.packs else None
        served = [] if consumer is None else [r for r in self.readers[result] if sign_key(r) == sign_key(consumer)]
        # A layer that is served in words reads the stream no more; its node may still be the reader of a shortcut elsewhere.
        keep = bool(set(result.users) - {r.nodes[0] for r in served}) or consumer is None
        before = match.before()
        step = match.step(consumer and consumer.layer, keep, keep and self.may_overwrite(match))
        if match.reads_words:
            source = self.words[sign_key(match)]
        else:
            source = self.values[match.input] if match.reads_stream else self.host(match.input)
        for other in before:
            source = self.made_before(other, source)
        others = [self.values[node] for node in match.others]
        if match.rounds:
            expected, channels = match.expected or (result, None)
            names = tuple(node.name for node in match.others)
            self.places.append(Place(step, match.input.name, names, expected.name, channels))
        self.made[result] = step
        made = self.step(step, match.label, source, *others, writes=1 + (step.pack and step.keep))
        if step.pack:
            self.words[sign_key(consumer)] = made[0]
        if step.keep or not step.pack:
            self.values[match.behind[-1] if match.behind else result] = made[-1]
        self.report(match, consumer if step.pack else None, step, len(self.readers.get(result, ())) - len(served))

    def made_before(self, step: Step, source: Value) -> Value:
        key = (source, step.key) if hasattr(step, 'key') else None
        if key in self.shared:
            self.shares = True
            return self.shared[key]
        made, = self.step(step, step.label, source)
        if key is not None:
            self.shared[key] = made
        return made

    def consumer_of(self, match: Match) -> Match | None:
        """The match that takes its words from the step of ``match``."""
        readers = [] if match.result in self.m.changed else self.readers.get(match.result, ())
        return next((reader for reader in readers if can_take_words(match.makes_images, reader)), None)

    def may_overwrite(self, match: Match) -> bool:
        """Whether the shortcut's memory can take the stream: made here, channels-last, and nobody else wants to read it."""
        shortcut = match.shortcut
        if shortcut is None or not isinstance(getattr(match, 'layer', None), PackedConv2d) or shortcut in self.m.changed:
            return False
        if shortcut not in self.made or not self.made[shortcut].owns:
            return False
        served = {reader.nodes[0] for reader in self.readers.get(shortcut, ())}
        return set(shortcut.users) - served == {sum_node(match)}

    def report(self, match: Match, consumer: Match | None, step: Step, unserved: int) -> None:
        if not match.parts:
            return
        text = ', '.join('shortcut in place' if part == 'shortcut' and step.in_place else part for part in match.parts)
        text = text if match.reads_words else f'{match.kind}: {text}'
        if consumer is not None:
            text += f', sign of {consumer.label}' + ('' if step.keep else ', words only')
        step.text = text
        if not match.reads_words:
            self.stems[match.label] = text
            return
        notes = [match.stop] if match.stop else []
        if consumer is not None and unserved:
            notes.append(f'{unserved} other reader(s) with other thresholds pack the stream themselves')
        self.rows[match.label] = text + ''.join(f'; {note}' for note in notes)


def read(records: list[Record], result) -> list[Record]:
    """The records without shapes that only a step's nodes asked for."""
    needed, kept = set(values_in(result)), []
    for record in reversed(records):
        if record.target not in (getattr, operator.getitem) or needed & set(record.writes):
            needed.update(record.reads)
            kept.insert(0, record)
    return kept


def plain(arguments):
    """The arguments of a node as ordinary tuples, lists and dicts."""
    if isinstance(arguments, Value):
        return arguments
    if isinstance(arguments, dict):
        return {key: plain(argument) for key, argument in arguments.items()}
    if isinstance(arguments, slice):
        return slice(plain(arguments.start), plain(arguments.stop), plain(arguments.step))
    if isinstance(arguments, list):
        return [plain(argument) for argument in arguments]
    if isinstance(arguments, tuple):
        parts = [plain(argument) for argument in arguments]
        return type(arguments)(*parts) if hasattr(arguments, '_fields') else tuple(parts)
    return arguments


def minds_strides(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node may ask in which order its inputs lie in memory: classes of results, views, modules of a host."""
    module = module_of(root, node)
    if module is not None:
        return not isinstance(module, (PackedModule, *LEAVES)) and not type(module).__module__.startswith('torch.')
    return isinstance(node.target, type) or name_of(node) in VIEWS


def sum_node(match: Match) -> fx.Node:
    return next(node for node in match.nodes if match.shortcut in node.args and node is not match.nodes[0])


def sign_key(match: Match) -> tuple:
    """Equal for layers that read the same words: the same input, thresholds and groups."""
    layer = match.layer
    plain = layer.activation.signed and not depends_on_input(layer) and layer.activation.threshold() is None
    plain = plain and getattr(layer, 'pre_norm', None) is None and getattr(layer, 'copy_shift', None) is None
    return (match.input, isinstance(layer, PackedConv2d), getattr(layer, 'groups', 1), None if plain else id(layer))


def can_take_words(is_conv: bool, reader: Match) -> bool:
    """Whether a step, of a convolution or not, can write the words that ``reader`` takes."""
    return is_conv == isinstance(reader.layer, PackedConv2d) \
        and not depends_on_input(reader.layer) and input_copies(reader.layer) == 1
