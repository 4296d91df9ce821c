"""Which nodes of a traced graph become one fused step: the patterns of ``patterns``, in their order.

A pattern is a file there: a function ``match(matcher)``, which gives a :class:`Match` for each place that it knows, and the
:class:`~.steps.Step` of such a match, with its error bound. What one has taken is no longer there for the next.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..packed import PackedLayer, PackedLinear, has_hooks
from .fold import IMAGE_NORMS, act_kind
from .graph import module_of, mutates, storage_of
from .steps import Step

ADDS = (operator.add, operator.iadd, torch.add)
ACTS = {F.relu: 'relu', torch.relu: 'relu', 'relu': 'relu', 'relu_': 'relu', F.hardtanh: 'hardtanh', F.silu: 'silu',
        torch.tanh: None}


@dataclass(eq=False)
class Match:
    """Nodes of a traced graph that one step stands for: ``nodes[-1]`` is the result.

    Attributes:
        nodes: in the order in which they run.
        parts: what is fused, in words.
        label: name of the step: the module that it begins with.
        shortcut: a second input.
        expected: what the result is compared with where no node has it: another node, and which channels of it.
        reads_words: the input is read as words: signs of it, for ``layer``.
        packs: the step can write the signs of what it makes, for a packed convolution (of a linear layer: for another one).
        kind: of a match that reads no words, in the report.
        reads_stream: the input may be in the dtype of the stream between steps, else it is in the model's.
        rounds: its results may differ from the model's by rounding.
        behind: nodes behind the result that the step computes, too: its stream is that of the last one, its words are those of
            the result.
    """

    nodes: list[fx.Node]
    parts: list[str] = field(default_factory=list)
    label: str = ''
    shortcut: fx.Node | None = None
    expected: tuple[fx.Node, slice] | None = None
    behind: list[fx.Node] = field(default_factory=list)

    kind = 'stem'
    reads_words = packs = False
    reads_stream = rounds = True

    @property
    def input(self) -> fx.Node:
        return self.nodes[0].args[0]

    @property
    def others(self) -> list[fx.Node]:
        """Further inputs."""
        return [] if self.shortcut is None else [self.shortcut]

    @property
    def makes_images(self) -> bool:
        """Whether the step makes images; else features."""
        return not isinstance(getattr(self, 'layer', None), PackedLinear)

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]

    def before(self) -> list[Step]:
        """Steps that make of the input what the step reads. One with a ``key`` serves all matches of this input and key."""
        return []

    def step(self, consumer: PackedLayer | None, keep: bool, in_place: bool) -> Step:
        """What computes it.

        Args:
            consumer: the layer that reads the words of the result; ``None`` for no words.
            keep: whether the stream is wanted, too.
            in_place: the shortcut's memory takes the stream.
        """
        raise NotImplementedError


class Matcher:
    """What the patterns find in a traced graph, and what they ask it.

    Attributes:
        matches: ``{last node: Match}``.
        interior: nodes that a step stands for, but for the last one.
        changed: nodes whose value something changes in place: readers take it when it is their turn.
        refused: ``{packed layer: reason}``.
        unfused: the same for convolutions that could have begun a stem.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, patterns: Iterable[Callable[['Matcher'], Iterator[Match]]],
                 exclude: Callable[[str], str]):
        self.root, self.graph, self.exclude = root, graph, exclude
        self.matches: dict[fx.Node, Match] = {}
        self.interior: set[fx.Node] = set()
        self.taken: set[fx.Node] = set()
        self.refused: dict[str, str] = {}
        self.unfused: dict[str, str] = {}
        for match in patterns:
            for found in match(self):
                self.matches[found.result] = found
                self.interior.update(found.nodes[:-1], found.behind)
                self.taken.update(found.nodes, found.behind)
        touched = [mutates(root, node) for node in graph.nodes if node not in self.taken]
        places = {storage_of(root, value) for value in touched if value is not None}
        self.changed = {node for node in graph.nodes if places and storage_of(root, node) in places}

    @property
    def readers(self) -> list[Match]:
        """The matches that read words."""
        return [match for match in self.matches.values() if match.reads_words]

    def module(self, node: fx.Node) -> nn.Module | None:
        return module_of(self.root, node)

    def free(self) -> Iterator[fx.Node]:
        """The nodes that no pattern has taken so far."""
        return (node for node in self.graph.nodes if node not in self.taken)

    def next(self, node: fx.Node) -> fx.Node | None:
        """The only reader of ``node``, which reads it once."""
        if len(node.users) != 1:
            return None
        (reader,) = node.users
        once = sum(argument is node for argument in reader.args) == 1
        return reader if once and reader.op != 'output' and reader not in self.taken else None

    def is_sum(self, node: fx.Node) -> bool:
        """``a + b`` of two values of the graph that may be written into ``a``."""
        if node.target not in ADDS and not (node.op == 'call_method' and node.target in ('add', 'add_')):
            return False
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) and a.op != 'get_attr' for a in node.args):
            return False
        written = mutates(self.root, node)
        mine = written is not None and len(written.users) == 1 and written.op != 'placeholder'
        return written is None or (mine and storage_of(self.root, written) is written)

    def act_of(self, node: fx.Node, layer: PackedLayer | None) -> nn.Module | str | None:
        """The non-linearity at ``node`` behind ``layer`` (``None``: a real one), if ``bnn_kernels`` knows it."""
        module = self.module(node)
        if module is not None:
            fits = getattr(module, 'channel_dim', 1) != -1 or isinstance(layer, PackedLinear)
            return module if act_kind(module) is not None and fits else None
        plain = len(node.args) == 1 and set(node.kwargs) <= {'inplace'}
        return ACTS.get(node.target) if plain and node.op in ('call_function', 'call_method') else None

    def is_image(self, node: fx.Node) -> bool:
        """Whether a step makes an image of it: what others only probably are."""
        match = self.matches.get(node)
        return match is not None and match.makes_images

    def is_plain_norm(self, node: fx.Node) -> bool:
        """Whether a batch norm in evaluation mode is at ``node``, and free."""
        norm = self.module(node)
        return isinstance(norm, IMAGE_NORMS) and not norm.training and norm.running_mean is not None \
            and not has_hooks(norm) and node not in self.taken and norm.running_mean.dtype != torch.float64


def act_text(act: nn.Module | str) -> str:
    return type(act).__name__ if isinstance(act, nn.Module) else act


def is_single(nodes: list[fx.Node]) -> bool:
    """Whether nothing else reads what the next of ``nodes`` reads."""
    return all(len(node.users) == 1 for node in nodes[:-1])
