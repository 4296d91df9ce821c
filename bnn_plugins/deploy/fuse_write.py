"""The graph of fused steps, from what was matched in a traced one."""

import operator
from typing import NamedTuple

import torch
from torch import fx, nn

from ..layers.base import input_copies
from .fuse_fold import depends_on_input
from .fuse_match import Chain, Matcher
from .fuse_ops import AffineStep, BlockStep, CastStep, ConvStep, DownsampleStep, FormatStep, PackStep, Step
from .fuse_segments import join_steps
from .fuse_stem import Stem, StemStep
from .graph import LEAVES, constants_of, graph_module, module_of, name_of
from .packed import PackedConv2d, PackedModule

FRESH = (BlockStep, DownsampleStep, AffineStep, ConvStep, StemStep)  # steps whose stream is theirs and channels-last


VIEWS = ('view', 'view_as', 'as_strided')  # what is an error, or another thing, in another memory format


class Place(NamedTuple):
    """What a step stands for in the traced graph: names of the nodes that are its input, its shortcut and its result."""

    step: Step
    input: str
    shortcut: str | None
    result: str


class Rewriter:
    """Writes the graph of fused steps.

    Args:
        stream: dtype of the real-valued stream between steps, ``None`` for that of the model.

    Attributes:
        steps: ``{target: Step}``.
        rows: ``{layer name: what it became}``.
        stems: the same for the real convolutions of stems.
        places: of all but the packings.
        segments: steps that run together.
    """

    def __init__(self, matcher: Matcher, stream: torch.dtype | None):
        self.m, self.root, self.stream = matcher, matcher.root, stream
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.words: dict[tuple, fx.Node] = {}
        self.casts: dict[fx.Node, fx.Node] = {}
        self.formatted: dict[fx.Node, fx.Node] = {}
        self.steps: dict[str, Step] = {}
        self.made: dict[fx.Node, Step] = {}  # by the old node whose stream it writes
        self.rows: dict[str, str] = {}
        self.stems: dict[str, str] = {}
        self.places: list[Place] = []
        self.readers: dict[fx.Node, list[Chain]] = {}
        for chain in matcher.chains.values():
            self.readers.setdefault(chain.input, []).append(chain)

    def run(self) -> fx.GraphModule:
        for node in self.m.graph.nodes:
            chain = self.m.chains.get(node)
            if chain and chain.input in self.m.changed:
                self.pack(chain)
            if node in self.m.interior:
                continue
            if node in self.m.chain_of:
                self.write_chain(self.m.chain_of[node])
            elif node in self.m.stems:
                self.write_stem(self.m.stems[node])
            elif node in self.m.float_parts:
                nodes, make = self.m.float_parts[node]
                step = make()
                source = nodes[0].args[0]
                value = self.host(source) if isinstance(step, ConvStep) else self.values[source]
                self.values[node] = self.call(step, name_of_step(nodes), value)
                self.made[node] = step
                self.places.append(Place(step, source.name, None, node.name))
            else:
                strict = minds_strides(self.root, node)
                self.values[node] = self.graph.node_copy(node, self.as_given if strict else self.host)
            if node not in self.m.changed:
                for reader in self.readers.get(node, ()):
                    self.pack(reader)
        self.segments = join_steps(self.graph, self.steps)
        return graph_module(self.root, self.graph, constants_of(self.m.graph), self.steps | self.segments)

    def call(self, step: Step, label: str, *arguments: fx.Node) -> fx.Node:
        target = f'fused_{len(self.steps)}'
        self.steps[target], step.label = step, label
        return self.graph.call_module(target, arguments)

    def host(self, node: fx.Node) -> fx.Node:
        """The value as modules outside of the fused steps know it."""
        if self.stream is None or not isinstance(self.made.get(node), BlockStep | AffineStep | StemStep):
            return self.values[node]
        if node not in self.casts:
            self.casts[node] = self.call(CastStep(), f'cast of {node.name}', self.values[node])
        return self.casts[node]

    def as_given(self, node: fx.Node) -> fx.Node:
        """The value as the host knows it, in the memory format in which the model gives it."""
        if node.op == 'placeholder':
            return self.values[node]
        if node not in self.formatted:
            given = next(self.values[n] for n in self.m.graph.nodes if n.op == 'placeholder')
            self.formatted[node] = self.call(FormatStep(), f'format of {node.name}', self.host(node), given)
            if node in self.m.changed:  # what changes in place is one value
                self.values[node] = self.formatted[node]
        return self.formatted[node]

    def pack(self, chain: Chain) -> None:
        key = sign_key(chain)
        if key not in self.words:
            self.words[key] = self.call(PackStep(chain.layer), f'signs of {chain.name}'.strip(), self.values[chain.input])

    def write_chain(self, chain: Chain) -> None:
        result = chain.result
        consumer = self.consumer_of(result, isinstance(chain.layer, PackedConv2d))
        served = [] if consumer is None else [r for r in self.readers[result] if sign_key(r) == sign_key(consumer)]
        # A layer that is served in words reads the stream no more; its node may still be the reader of a shortcut elsewhere.
        keep = bool(set(result.users) - {r.nodes[0] for r in served})
        in_place = (keep or consumer is None) and self.may_overwrite(chain)
        step = BlockStep(chain.name, chain.layer, chain.tiles, chain.norms, chain.shortcut is not None, chain.act,
                         consumer and consumer.layer, keep or consumer is None, in_place)
        arguments = [self.words[sign_key(chain)], *([self.values[chain.shortcut]] if chain.shortcut is not None else [])]
        self.places.append(Place(step, chain.input.name, chain.shortcut and chain.shortcut.name, result.name))
        self.made[result] = step
        self.note_results(step, self.call(step, chain.name, *arguments), result, consumer)
        self.report(chain, consumer, step, len(self.readers.get(result, ())) - len(served))

    def write_stem(self, stem: Stem) -> None:
        source, result = stem.nodes[0].args[0], stem.nodes[-1]
        consumer = self.consumer_of(result, True)
        step = StemStep(stem.conv, stem.pool, stem.affines, stem.act, consumer and consumer.layer)
        step.text = 'stem: ' + ', '.join(stem.parts) + ('' if consumer is None else f', sign of {consumer.name}')
        self.places.append(Place(step, source.name, None, result.name))
        self.made[result] = step
        self.note_results(step, self.call(step, stem.nodes[0].target, self.host(source)), result, consumer)
        self.stems[step.label] = step.text

    def consumer_of(self, result: fx.Node, is_conv: bool) -> Chain | None:
        """The chain that takes its words from the step which makes ``result``."""
        readers = [] if result in self.m.changed else self.readers.get(result, ())
        return next((reader for reader in readers if can_take_words(is_conv, reader)), None)

    def note_results(self, step: BlockStep | StemStep, out: fx.Node, result: fx.Node, consumer: Chain | None) -> None:
        """Where stream and words of a step are found."""
        words = stream = out
        if step.pack and step.keep:
            words, stream = (self.graph.call_function(operator.getitem, (out, i)) for i in (0, 1))
        if step.keep:
            self.values[result] = stream
        if step.pack:
            self.words[sign_key(consumer)] = words

    def may_overwrite(self, chain: Chain) -> bool:
        """Whether the shortcut's memory can take the stream: made here, channels-last, and nobody else wants to read it."""
        shortcut = chain.shortcut
        if shortcut is None or not isinstance(chain.layer, PackedConv2d) or shortcut in self.m.changed:
            return False
        step = self.made.get(shortcut)
        if not isinstance(step, FRESH) or (isinstance(step, BlockStep) and not step.is_conv):
            return False
        chains = {reader.nodes[0] for reader in self.readers.get(shortcut, ())}
        return set(shortcut.users) - chains == {sum_node(chain)}

    def report(self, chain: Chain, consumer: Chain | None, step: BlockStep, unserved: int) -> None:
        text = ', '.join('shortcut in place' if part == 'shortcut' and step.in_place else part for part in chain.parts)
        if consumer is not None:
            text += f', sign of {consumer.name}' + ('' if step.keep else ', words only')
        notes = [chain.stop] if chain.stop else []
        if consumer is not None and unserved:
            notes.append(f'{unserved} other reader(s) with other thresholds pack the stream themselves')
        step.text = text
        self.rows[chain.name] = text + ''.join(f'; {note}' for note in notes)


def minds_strides(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node may ask in which order its inputs lie in memory: what leaves the graph, views, modules of a host."""
    module = module_of(root, node)
    if module is not None:
        return not isinstance(module, (PackedModule, *LEAVES)) and not type(module).__module__.startswith('torch.')
    return node.op == 'output' or isinstance(node.target, type) or name_of(node) in VIEWS


def name_of_step(nodes: list[fx.Node]) -> str:
    """The first module of a float part."""
    return next(node.target for node in nodes if node.op == 'call_module')


def sum_node(chain: Chain) -> fx.Node:
    return next(node for node in chain.nodes if chain.shortcut in node.args and node is not chain.nodes[0])


def sign_key(chain: Chain) -> tuple:
    """Equal for layers that read the same words: the same input, thresholds and groups."""
    layer = chain.layer
    plain = layer.activation.signed and not depends_on_input(layer) and layer.activation.threshold() is None
    plain = plain and getattr(layer, 'pre_norm', None) is None and getattr(layer, 'copy_shift', None) is None
    return (chain.input, isinstance(layer, PackedConv2d), getattr(layer, 'groups', 1), None if plain else id(layer))


def can_take_words(is_conv: bool, reader: Chain) -> bool:
    """Whether a step, of a convolution or not, can write the words that ``reader`` takes."""
    return is_conv == isinstance(reader.layer, PackedConv2d) \
        and not depends_on_input(reader.layer) and input_copies(reader.layer) == 1
