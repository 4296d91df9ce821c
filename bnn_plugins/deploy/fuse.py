"""``fuse_``: run the blocks of a packed model as the fused operators of ``bnn_kernels``."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from operator import attrgetter, getitem, is_
from types import CodeType

import torch
from torch import Tensor, fx, nn

from ..convert.tables import printed, report_table
from ..layers import BinaryLayer
from .fuse_match import Matcher
from .fuse_ops import Broadcast, Step
from .fuse_write import Rewriter
from .graph import Untraceable, arguments_of, contains, tensors_of, trace_region
from .packed import PackedLayer

STREAMS = (None, torch.float32, torch.bfloat16, torch.float16)
# What is traced where forward cannot be: mmdet's dense heads call forward_single for each level of the pyramid.
METHODS = ('forward', 'forward_single')
VERSION, TRAINING = attrgetter('_version'), attrgetter('training')


@dataclass
class FusionReport:
    """The result of :func:`fuse_`. ``print(report)`` and rich both show it as a table.

    Attributes:
        rows: ``{packed layer: what it became}``; 'not fused: reason' for those that run as before.
        stems: ``{real convolution of an image: what it became}``; 'not fused: reason' for those that torch runs, and what
            follows them.
        parts: ``{module: what was traced there}``: the parts that run as one graph, and those that could not be traced.
    """

    rows: dict[str, str] = field(default_factory=dict)
    stems: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    @property
    def fused(self) -> list[str]:
        return [name for name, text in self.rows.items() if not text.startswith('not fused')]

    def summary(self) -> str:
        return f'{len(self.fused)} of {len(self.rows)} packed layers fused'

    def __rich__(self):
        parts = {name or '(the model)': text for name, text in self.parts.items()}
        rows = (*self.stems.items(), *self.rows.items(), *parts.items())
        return report_table('Fusion report', ('layer', 'runs as'), rows, self.summary(), overflow='fold')

    def __str__(self) -> str:
        return printed(self)


@dataclass(frozen=True)
class Options:
    stream_dtype: torch.dtype | None = None
    exclude: tuple[str, ...] = ()


def fuse_(model: nn.Module, *, stream_dtype: torch.dtype | None = None, exclude: Iterable[str] = ()) -> FusionReport:
    """Run blocks of a packed model as fused operators, in place: words in, words and real-valued stream out.

    Convolution, norm, shortcut, non-linearity and the sign of the next layer become one operator. The module tree, the
    parameters and the state dict stay as they are; only what ``forward`` runs in evaluation mode is replaced, and
    :func:`unfuse_` takes it back. A fused model has no gradients. It follows ``load_state_dict``, ``.to()`` and changes of
    parameters; in training mode, and while one of its modules has forward hooks, the modules run as they are.

    Signs are those of the packed model but where a value lies within rounding of its threshold, because norms are folded: see
    :func:`bnn_plugins.verify`. Floating point streams are in channels-last memory.

    Args:
        model: after :func:`bnn_plugins.pack_` or :func:`bnn_plugins.load_packed_`. Fused already, it is fused again.
        stream_dtype: of the real-valued stream between blocks; default the model's. ``torch.bfloat16`` halves the memory
            traffic and rounds the stream after each block; outputs keep the model's dtype.
        exclude: patterns (:mod:`fnmatch`) of packed layers that stay as they are.

    Returns:
        which layers are fused, into what, and which are not, and why.

    Raises:
        ValueError: for a latent model, one without packed layers, or a pattern that matches none. TypeError: for another
            dtype.

    Example:
        >>> convs = [BinaryConv2d(16, 16, 3, padding=1, method='bireal') for _ in range(2)]
        >>> model = pack_(nn.Sequential(convs[0], nn.BatchNorm2d(16), convs[1], nn.BatchNorm2d(16)))
        >>> report = fuse_(model)
        >>> sorted(report.rows)
        ['0', '2']
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if stream_dtype not in STREAMS:
        raise TypeError(f'stream_dtype must be torch.float32, bfloat16 or float16, but got {stream_dtype}')
    if contains(model, BinaryLayer):
        raise ValueError(f'this {type(model).__name__} is latent: pack_ it first, then fuse_ it')
    names = [name for name, module in model.named_modules() if isinstance(module, PackedLayer)]
    if not names:
        raise ValueError(f'this {type(model).__name__} has no packed layer: binarize_ and pack_ it first')
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f'exclude: the pattern {pattern!r} matches no packed layer')
    unfuse_(model)
    report = FusionReport()
    fuse_region(model, '', Options(stream_dtype, exclude), report)
    found = {name: report.rows.get(name, 'not fused: it is not called by the forward of a module') for name in names}
    report.rows = found
    return report


def unfuse_(model: nn.Module) -> nn.Module:
    """Take :func:`fuse_` back, in place; returns ``model``.

    Example:
        >>> model = pack_(nn.Sequential(BinaryConv2d(16, 16, 3, method='bireal'), nn.BatchNorm2d(16)))
        >>> x = torch.randn(1, 16, 8, 8)
        >>> packed = model(x)
        >>> report = fuse_(model)
        >>> torch.equal(unfuse_(model)(x), packed)
        True
    """
    for module in model.modules():
        for method in METHODS:
            if isinstance(vars(module).get(method), FusedForward):
                delattr(module, method)
    return model


def fused_parts(model: nn.Module) -> Iterator[tuple[str, 'FusedForward']]:
    """The modules that run as fused graphs, by name."""
    for name, module in model.named_modules():
        for method in METHODS:
            if isinstance(vars(module).get(method), FusedForward):
                yield name, vars(module)[method]


def fused_steps(model: nn.Module) -> Iterator[tuple[str, Step]]:
    """The fused steps, in the order in which they run, by the name of the packed layer (or node) that they stand for.

    They are modules: forward hooks on them see words and streams.
    """
    for name, part in fused_parts(model):
        if part.run is None:
            part.build()
        for step in part.steps.values():
            yield f'{name}.{step.label}'.strip('.'), step


def fuse_region(module: nn.Module, name: str, options: Options, report: FusionReport) -> None:
    """Fuse ``module``, or the largest of its parts that can be traced."""
    if not contains(module, PackedLayer):
        return
    reasons = []
    for method in METHODS if not isinstance(module, PackedLayer) else METHODS[:1]:
        if not hasattr(type(module), method) or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        part = FusedForward(module, name, method, options)
        try:
            part.build()
        except Untraceable as error:
            reasons.append(f'{method} cannot be traced ({error.why})')
            continue
        if part.rows:
            setattr(module, method, part)
            report.parts[name] = f'{len(part.steps)} steps' + ('' if method == 'forward' else f' ({method})')
        report.rows.update(part.rows)
        report.stems.update(part.stems)
        report.rows.update({layer: f'not fused: {why}' for layer, why in part.refused.items()})
        for inner in part.opaque:
            fuse_region(module.get_submodule(inner), f'{name}.{inner}'.lstrip('.'), options, report)
        return
    if reasons:
        report.parts[name] = '; '.join(reasons) + ': its parts are fused one by one'
    for inner, child in module.named_children():
        fuse_region(child, f'{name}.{inner}'.lstrip('.'), options, report)


class FusedForward:
    """What a fused module runs instead of its forward; an attribute of the instance, so that hosts call the module as ever.

    A copy or an unpickled one makes its graph again when it is first called.
    """

    def __init__(self, module: nn.Module, name: str, method: str, options: Options):
        self.module, self.name, self.method, self.options = module, name, method, options
        self.unfusable_sums: set[str] = set()  # layers whose neighbours have other shapes than they
        self.run, self.usable = None, True

    def __getstate__(self) -> dict:
        kept = {key: vars(self)[key] for key in ('module', 'name', 'method', 'options', 'unfusable_sums')}
        return {**kept, 'run': None, 'usable': True}

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    @property
    def __code__(self) -> CodeType:  # torch.export asks where a forward was written
        return self.original.__code__

    @property
    def original(self) -> Callable:
        return getattr(type(self.module), self.method).__get__(self.module)

    def __call__(self, *args, **kwargs):
        if not self.module.training and (self.run is not None if torch.compiler.is_compiling() else self.ready()):
            tensors = args if not kwargs and len(args) == self.arity and self.length is None else self.flatten(args, kwargs)
            while tensors is not None:
                try:
                    if not torch.is_grad_enabled():
                        return self.run(*tensors)
                    with torch.no_grad():
                        return self.run(*tensors)
                except Broadcast as error:
                    self.exclude_sum(error.step)
        return self.original(*args, **kwargs)

    def flatten(self, args: tuple, kwargs: dict) -> list[Tensor] | None:
        """The inputs of the graph; ``None`` where the call is not the one that was traced."""
        given = inspect.signature(self.original).bind(*args, **kwargs).arguments
        values = [given.pop(name) for name in self.required]
        if self.length is not None:
            first = values.pop(0)
            if not isinstance(first, list | tuple) or len(first) != self.length:
                return self.say_once(f'is called with something else than {self.length} maps')
            values = [*first, *values]
        other = [name for name, value in given.items() if value is not self.defaults[name]]
        return values if not other else self.say_once(f'is called with {", ".join(other)}')

    def say_once(self, what: str) -> None:
        if not torch.compiler.is_compiling():
            warnings.warn(f'fused {self.name or type(self.module).__name__} {what}, but was traced without: it runs unfused',
                          stacklevel=4)

    def exclude_sum(self, layer: str) -> None:
        self.unfusable_sums.add(layer)
        warnings.warn(f'fuse_: {self.full(layer)} has another shape than what is added to it (or than its norm takes): the '
                      f'sum is left to torch', stacklevel=4)
        self.build()

    def full(self, name: str) -> str:
        return f'{self.name}.{name}'.strip('.')

    def ready(self) -> bool:
        """Whether the graph may run now; brings its constants up to date."""
        if self.run is None and self.usable:
            self.build()
        if self.run is None:
            return False
        if any(self.hooks) or any(map(TRAINING, self.norms)):
            return False
        if not all(map(is_, map(getitem, self.holders, self.keys), self.held)):  # .to(), load_state_dict(assign=True), ...
            self.prepare()
            if self.usable and (self.has_constants or self.stems):  # another device may run no stem
                self.build()
        elif sum(map(VERSION, self.tracked)) != self.version:
            self.prepare()
        return self.usable

    @torch.no_grad()
    def build(self) -> None:
        """Trace, match and write the graph.

        Raises:
            Untraceable: when torch.fx cannot follow the method.
        """
        if isinstance(self.module, PackedLayer):
            graph, inlined, opaque, self.length = layer_graph(), [], (), None
        else:
            tracer, graph = trace_region(self.module, PackedLayer, self.method)
            inlined, opaque, self.length = tracer.inlined, tracer.opaque, tracer.length
        self.required, self.defaults = arguments_of(getattr(type(self.module), self.method))
        self.arity, self.opaque = len(self.required), sorted(opaque)
        matcher = Matcher(self.module, graph, self.excluded, self.unfusable_sums)
        self.refused = {self.full(name): reason for name, reason in matcher.refused.items()}
        self.rows, self.steps = {}, {}
        self.stems = {self.full(name): f'not fused: {reason}' for name, reason in matcher.unfused.items()}
        self.usable = bool(matcher.chains)
        if not self.usable:
            return
        rewriter = Rewriter(matcher, self.options.stream_dtype)
        fused = rewriter.run()
        self.rows = {self.full(name): text for name, text in rewriter.rows.items()}
        self.stems.update((self.full(name), text) for name, text in rewriter.stems.items())
        self.steps, self.places, self.segments = rewriter.steps, rewriter.places, rewriter.segments.values()
        self.has_constants = any(node.op == 'get_attr' for node in rewriter.graph.nodes)
        called = {id(module) for module in fused.modules()}
        self.modules = list({id(m): m for step in self.steps.values() for m in step.layers()}.values())
        self.hooks = [hooks for m in {id(m): m for m in (*inlined, *self.modules)}.values() if id(m) not in called
                      and m is not self.module for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self.norms = [m for m in self.modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.prepare()
        vars(fused).update(self.steps | rewriter.segments)  # plain attributes are found sooner than submodules
        self.run = fused.forward

    def excluded(self, name: str) -> str:
        pattern = next((pattern for pattern in self.options.exclude if fnmatchcase(self.full(name), pattern)), None)
        return '' if pattern is None else f'excluded by {pattern!r}'

    @torch.no_grad()
    def prepare(self) -> None:
        """Fold the constants, and remember which tensors they were made of."""
        places = [place for module in self.modules for place in tensors_of(module)]
        self.holders, self.keys = [holder for holder, _ in places], [key for _, key in places]
        self.held = [holder[key] for holder, key in places]
        self.tracked = [t for t in self.held if t is not None and not t.is_inference()]
        self.version = sum(map(VERSION, self.tracked))
        dtypes = [t.dtype for t in self.held if t is not None and t.is_floating_point()] or [torch.float32]
        self.usable = torch.float64 not in dtypes
        with torch.inference_mode(False):
            for step in self.steps.values():
                step.stream, step.host = self.options.stream_dtype or dtypes[0], dtypes[0]
                step.prepare()
        for segment in self.segments:
            segment.calls.clear()


def layer_graph() -> fx.Graph:
    """The graph of a packed layer by itself."""
    graph = fx.Graph()
    graph.output(graph.call_module('', (graph.placeholder('input'),)))
    return graph
