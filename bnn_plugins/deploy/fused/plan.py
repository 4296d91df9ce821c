"""What a method of a module became for one kind of call: its program, and what its constants are made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, fx, nn

from ..packed import PackedLayer, PackedLinear
from ..rest_layer import RestLayer
from .graph import Argument, tensors_of, trace_region
from .match import Matcher
from .patterns import PATTERNS
from .patterns.block import BlockStep
from .steps import Step
from .write import Writer

LEAST_WEIGHTS = 2**18  # 512 x 512: docs/speed.md
ALONE = '; alone, of so few weights, it is slower than nn.Linear for one row: leave it out of binarize_'


@dataclass(frozen=True)
class Options:
    stream_dtype: torch.dtype | None = None
    exclude: tuple[str, ...] = ()


class Plan:
    """Traced, matched and written.

    Args:
        module, name, method: what is traced, and how it is called in its model.
        given: what is known of each argument that is not left at its default.
        nothings: where what its modules return is None, see :class:`Tracer`.

    Attributes:
        arguments: those of ``given``, with what the trace has asked about them: another call may differ in all else.
        program: ``None`` where nothing is fused.
        rows, stems, refused: for the report, by the name of the layer in the model.
        opaque: names of modules inside that could not be traced.
        called: modules that the method calls.
        folded: modules whose tensors the constants are made of.
        channels: the sizes of dimension 1 that the trace has taken for granted, by the place of the input.
        usable: whether the tensors have dtypes that the operators take.

    Raises:
        Untraceable: when torch.fx cannot follow the method.
    """

    def __init__(self, module: nn.Module, name: str, method: str, given: dict[str, Argument], options: Options,
                 nothings: frozenset[tuple[str, int]] = frozenset()):
        self.module, self.name, self.options, self.traced, self.nothings = module, name, options, given, nothings
        if isinstance(module, PackedLayer):
            graph, inlined, opaque, self.arguments = layer_graph(), [], (), {'input': Argument('any')}
        else:
            tracer, graph = trace_region(module, (PackedLayer, RestLayer), method, given, nothings)
            inlined, opaque, self.arguments = tracer.inlined, tracer.opaque, tracer.asked()
        self.opaque, self.called = sorted(opaque), inlined
        inputs = [node for node in graph.nodes if node.op == 'placeholder']
        self.channels = [(place, node.meta['channels']) for place, node in enumerate(inputs)
                         if node.meta.get('asked') and node.meta['channels'] is not None]
        matcher = Matcher(module, graph, PATTERNS, self.excluded)
        self.refused = {self.full(name): reason for name, reason in matcher.refused.items()}
        self.stems = {self.full(name): f'not fused: {reason}' for name, reason in matcher.unfused.items()}
        self.rows, self.steps, self.program, self.usable = {}, {}, None, False
        self.hooks, self.norms, self.folded, self.held, self.has_constants = [], [], [], [], False
        if not matcher.readers and not any(match.kind == 'int8' for match in matcher.matches.values()):
            return
        writer = Writer(matcher, options.stream_dtype)
        self.program = writer.run()
        self.rows = {self.full(name): text for name, text in writer.rows.items()}
        if stands_alone(writer.steps.values()):
            self.rows = {name: text + ALONE for name, text in self.rows.items()}
        self.stems.update((self.full(name), text) for name, text in writer.stems.items())
        self.steps, self.places = writer.steps, writer.places
        kept = [value for value in writer.held.values() if isinstance(value, nn.Module)]
        self.has_constants = len(kept) < len(writer.held) or writer.shares
        called = {id(inner) for value in kept for inner in value.modules()}
        self.folded = list({id(m): m for step in self.steps.values() for m in step.layers()}.values())
        run = {id(m): m for m in (*inlined, *self.folded)}.values()
        self.hooks = [hooks for m in run if id(m) not in called and m is not module
                      for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.norms = [m for m in self.folded if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.prepare()

    @torch.no_grad()
    def prepare(self) -> None:
        """Fold the constants, and remember which tensors they were made of."""
        real = [module for module in self.folded if not isinstance(module, RestLayer)]  # their scales are float32 in any model
        tensors = [holder[key] for module in real for holder, key in tensors_of(module)]
        dtypes = [t.dtype for t in tensors if t is not None and t.is_floating_point()] or [torch.float32]
        self.parameters = list(self.module.parameters())
        self.usable, self.held = torch.float64 not in dtypes, self.identities()
        with torch.inference_mode(False):
            for step in self.steps.values():
                step.stream, step.host = self.options.stream_dtype or dtypes[0], dtypes[0]
                step.prepare()
        if self.program is not None:
            for segment in self.program.segments:
                segment.known.clear()

    def identities(self) -> list:
        """Equal while nothing has moved."""
        tensors = (holder[key] for module in self.folded for holder, key in tensors_of(module))
        return [t if t is None else (id(t), t.data_ptr(), t.dtype, t.device) for t in tensors]

    def has_moved(self) -> bool:
        return not self.folded or self.identities() != self.held

    def may_run(self) -> bool:
        """Whether nothing inside has forward hooks, or takes statistics of a batch."""
        return self.usable and not any(self.hooks) and not any(norm.training for norm in self.norms)

    def fits(self, inputs: list[Tensor]) -> bool:
        return all(inputs[place].shape[1] == channels for place, channels in self.channels)

    def wants_gradients(self, inputs: list[Tensor]) -> bool:
        return any(x.requires_grad for x in (*self.parameters, *inputs) if isinstance(x, Tensor))

    def excluded(self, name: str) -> str:
        pattern = next((pattern for pattern in self.options.exclude if fnmatchcase(self.full(name), pattern)), None)
        return '' if pattern is None else f'excluded by {pattern!r}'

    def full(self, name: str) -> str:
        return f'{self.name}.{name}'.strip('.')

    @property
    def inputs(self) -> list[str]:
        """Names of the arguments that the program is called with, in order."""
        return [name for name, argument in self.arguments.items() if argument.kind != 'constant']

    def takes(self, given: dict[str, Argument]) -> bool:
        """Whether a call with these arguments computes what was traced."""
        return given.keys() == self.arguments.keys() and all(self.arguments[name].takes(given[name]) for name in given)


def stands_alone(steps: Iterable[Step]) -> bool:
    """Whether a program is one linear layer of so few weights that for one row its call takes longer than ``nn.Linear``."""
    layers = [step.held[0] for step in steps if isinstance(step, BlockStep)]
    return len(layers) == 1 and isinstance(layers[0], PackedLinear) \
        and layers[0]._fan() * layers[0].weight_bits.shape[1] < LEAST_WEIGHTS


def layer_graph() -> fx.Graph:
    """The graph of a packed layer by itself."""
    graph = fx.Graph()
    graph.output(graph.call_module('', (graph.placeholder('input'),)))
    return graph

