"""What a packed model computes, as a graph: torch.fx with packed layers, norms and non-linearities as leaves.

A *region* is a module whose forward could be traced. What cannot be (control flow that depends on data) is left as a call in
the graph around it, and is searched for smaller regions itself.
"""

import dataclasses
import inspect
import operator
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.nn import functional as F

from ...layers import RPReLU
from ...layers.expand import Tile
from ..packed import has_hooks
from .fold import IMAGE_NORMS

# fx replaces nn.Module.__call__ while it traces, for the whole process.
TRACING = threading.RLock()
LEAVES = (RPReLU, Tile)
SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
VIEWS = {'view', 'reshape', 'flatten', 'unflatten', 'permute', 'transpose', 'chunk', 'split', 'narrow', 'squeeze', 'unsqueeze',
         'expand', 'expand_as', 'contiguous', 'detach', 'unbind', 'select', 't', 'to', 'float', 'getitem', 'item_of'}
# Modules and functions whose result has the channels of their input.
KEEPERS = (*SKIPPED, RPReLU, Tile, nn.PReLU, nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.SiLU, nn.MaxPool2d, nn.AvgPool2d,
           nn.AdaptiveAvgPool2d)
KEEPING = {'add', 'iadd', 'add_', 'sub', 'mul', 'relu', 'hardtanh', 'leaky_relu', 'silu', 'avg_pool2d', 'max_pool2d',
           'adaptive_avg_pool2d', 'interpolate', 'contiguous'}
IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


class Untraceable(Exception):
    """Raised while tracing: ``where`` is the name of the module inside of which fx gave up ('' is the root)."""

    def __init__(self, where: str, why: str):
        super().__init__(why)
        self.where, self.why = where, why


class Nothing(Exception):
    """Raised by a program: the module ``name`` has returned None at ``index``, which the trace took for a value."""

    def __init__(self, name: str, index: int):
        super().__init__(f'{name}[{index}] is None')
        self.place = name, index


def item_of(values, index: int, name: str):
    """``values[index]`` of what the module ``name``, which was not traced, has returned."""
    if values[index] is None:
        raise Nothing(name, index)
    return values[index]


class Value(fx.Proxy):
    """A proxy that knows ``x += y``: fx would take it for ``x = x + y``, although others may hold ``x``, too."""

    def __iadd__(self, other):
        return self.tracer.create_proxy('call_function', operator.iadd, (self, other), {})

    def __isub__(self, other):
        return self.tracer.create_proxy('call_function', operator.isub, (self, other), {})

    def __imul__(self, other):
        return self.tracer.create_proxy('call_function', operator.imul, (self, other), {})

    def __itruediv__(self, other):
        return self.tracer.create_proxy('call_function', operator.itruediv, (self, other), {})


class Argument(NamedTuple):
    """What is known of an argument of a traced method.

    Attributes:
        kind: ``'tensor'``, ``'number'``, ``'maps'`` (a list of tensors), ``'constant'``; ``'any'``: a tensor or a number.
        rank: dimensions of a tensor; ``None``: any.
        length: of maps.
        value: a constant.
    """

    kind: str
    rank: int | None = None
    length: int | None = None
    value: object = None

    def takes(self, other: 'Argument | None') -> bool:
        """Whether what was traced for this argument computes the same for ``other``."""
        if other is None or (self.rank is not None and self.rank != other.rank):
            return False
        if self.kind == 'any':
            return other.kind in ('tensor', 'number')
        return (self.kind, self.length, self.value) == (other.kind, other.length, other.value)


class Input(Value):
    """The proxy of an argument. What a forward asks it is noted: whether it is a tensor, and of how many dimensions."""

    @property
    def given(self) -> Argument:
        return self.tracer.given[self.node.name]

    @property
    def __class__(self) -> type:  # isinstance and torch.is_tensor ask it
        asker = sys._getframe(1).f_globals.get('__name__', '')
        if asker.startswith(('torch.fx', 'torch.nn.parameter', __name__)):
            return type(self)
        self.tracer.kind_matters.add(self.node.name)
        return Tensor if self.given.kind == 'tensor' else type(self)

    def __getattr__(self, name: str):
        if name in ('ndim', 'shape') and (rank := self.rank()) is not None:
            return rank if name == 'ndim' else Shape(self, name, rank)
        return super().__getattr__(name)

    def rank(self) -> int | None:
        if self.given.rank is not None:
            self.tracer.rank_matters.add(self.node.name)
        return self.given.rank


class Shape(fx.proxy.Attribute):
    """Of a tensor of known rank."""

    def __init__(self, root: fx.Proxy, name: str, rank: int):
        super().__init__(root, name)
        self.rank = rank

    def __len__(self) -> int:
        return self.rank


class Tracer(fx.Tracer):
    """Traces ``method`` of a module for evaluation.

    Args:
        layers: classes of the binary layers.
        given: the arguments, but for those that are left at their defaults.
        opaque: names of modules that are called as they are.
        method: name of the traced method.
        nothings: ``(name, index)`` where what modules return is None, on which the code around them may depend.
    """

    def __init__(self, layers: type | tuple[type, ...], given: dict[str, Argument], opaque: set[str] = frozenset(),
                 method: str = 'forward', nothings: frozenset[tuple[str, int]] = frozenset()):
        super().__init__()
        self.layers, self.given, self.opaque, self.traced_func_name = layers, given, opaque, method
        self.nothings = nothings
        self.inlined: list[nn.Module] = []
        self.kind_matters: set[str] = set()
        self.rank_matters: set[str] = set()

    def asked(self) -> dict[str, Argument]:
        """The arguments for which the trace is right."""
        return {name: argument if argument.kind not in ('tensor', 'number') else
                Argument(argument.kind if name in self.kind_matters else 'any',
                         argument.rank if name in self.rank_matters else None) for name, argument in self.given.items()}

    def trace(self, root: nn.Module) -> fx.Graph:
        with TRACING:
            try:
                graph = super().trace(root)
            except Untraceable:
                raise
            except Exception as error:  # whatever a forward does with a proxy that it took for a tensor
                raise Untraceable('', first_line(error)) from error
        for name in [name for name in vars(root) if name.startswith('_tensor_constant')]:
            constants_of(graph)[name] = vars(root)[name]
            delattr(root, name)  # fx leaves it at the module
        skip_nothings(root, graph)
        write_silu(root, graph)
        return graph

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args=None) -> tuple[Callable, list]:
        channels, values = input_channels(self.root), []
        for place, (name, argument) in enumerate(self.given.items()):
            known = channels if place == 0 else None
            if argument.kind == 'constant':
                values.append(argument.value)
            elif argument.kind == 'maps':
                if not isinstance(known, list | tuple) or len(known) != argument.length:
                    known = [None] * argument.length
                values.append(tuple(self.input(f'{name}_{i}', channels) for i, channels in enumerate(known)))
            else:
                values.append(self.input(name, known if isinstance(known, int) else None))

        def call(root: nn.Module, *values):
            return root_fn(root, **dict(zip(self.given, values, strict=True)))

        return call, [self.root, *values]

    def input(self, name: str, channels: int | None) -> fx.Proxy:
        proxy = self.create_proxy('placeholder', name, (), {})
        proxy.node.meta['channels'] = channels
        return proxy

    def create_arg(self, a):
        """Results of a class of their own, such as a dict with attributes, are made anew of what they hold."""
        if dataclasses.is_dataclass(a) and not isinstance(a, type):
            made = {field.name: self.create_arg(getattr(a, field.name)) for field in dataclasses.fields(a)}
            return self.create_node('call_function', type(a), (), made)
        if isinstance(a, dict) and type(a) not in (dict, immutable_dict):
            return self.create_node('call_function', type(a), (super().create_arg(dict(a)),), {})
        return super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return (Input if node.op == 'placeholder' and node.name in self.given else Value)(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if obj.node.target is getattr and obj.node.args[1] == 'requires_grad':
            return False  # activation checkpointing asks; there is nothing to train
        return super().to_bool(obj)

    def create_proxy(self, kind: str, target, args: tuple, kwargs: dict, *other, **more):
        """Numbers of channels are no secret: code that asks for ``x.shape[1]`` gets the number. So is None that a module
        returns, once it is known."""
        if target is operator.getitem and args[0].node.op == 'call_module' and isinstance(args[1], int):
            name = args[0].node.target
            if (name, args[1]) in self.nothings:
                return None
            target, args = item_of, (*args, name)
        asked = None
        if kind == 'call_method' and target == 'dim' and isinstance(args[0], Input) and (rank := args[0].rank()) is not None:
            return rank
        if target is operator.getitem and isinstance(args[0], fx.proxy.Attribute) and args[0].attr == 'shape':
            asked = args[0].root
        elif kind == 'call_method' and target == 'size':
            asked = args[0]
        channels = None if asked is None or args[1:] != (1,) else channels_of(self.root, asked.node)
        return super().create_proxy(kind, target, args, kwargs, *other, **more) if channels is None else channels

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        if isinstance(m, (*LEAVES, self.layers)) or name in self.opaque or has_hooks(m):
            return True
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            return False
        if super().is_leaf_module(m, name):
            return True
        if contains(m, self.layers) or (contains(m, nn.Conv2d) and contains(m, IMAGE_NORMS)):  # to be folded
            return False
        # Without tensors of its own it may be a shortcut, a stochastic depth that is off, a reshaping: worth looking inside.
        return any(True for _ in (*m.parameters(), *m.buffers()))

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict):
        self.inlined.append(m)
        try:
            name = self.path_of_module(m)
        except NameError:  # a forward has made it, or keeps it in a list
            if any(True for _ in (*m.parameters(), *m.buffers())):
                raise
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(name, first_line(error)) from error


def arguments_of(function: Callable) -> tuple[list[str], dict[str, object]]:
    """Names of the arguments of a method without a default, and the defaults of the others.

    Raises:
        ValueError: for nothing but ``*args`` and ``**kwargs``, which can be anything.
    """
    _, *found = inspect.signature(function).parameters.values()
    parameters = [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if found and not parameters:
        raise ValueError(f'it takes {found[0]}')
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return [p.name for p in parameters if p.name not in defaults], defaults


def contains(module: nn.Module, layers: type | tuple[type, ...]) -> bool:
    return any(isinstance(m, layers) for m in module.modules())


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f'{type(error).__name__}: {text[0]}' if text else type(error).__name__


def input_channels(module: nn.Module) -> int | list[int] | None:
    """What the first argument has: in OpenMMLab, ``in_channels`` is a list where it is a tuple of maps."""
    return vars(module).get('in_channels')


def trace_region(module: nn.Module, layers: type | tuple[type, ...], method: str, given: dict[str, Argument],
                 nothings: frozenset[tuple[str, int]] = frozenset()) -> tuple[Tracer, fx.Graph]:
    """Trace ``method`` of ``module`` for such arguments; modules inside that cannot be traced become calls.

    Raises:
        Untraceable: when the method itself cannot be.
    """
    opaque: set[str] = set()
    while True:
        tracer = Tracer(layers, given, opaque, method, nothings)
        try:
            return tracer, tracer.trace(module)
        except Untraceable as error:
            if error.where == '' or error.where in opaque:
                raise
            opaque = opaque | {error.where}


def skip_nothings(root: nn.Module, graph: fx.Graph) -> None:
    """Remove what does nothing in evaluation, and what nobody reads."""
    written = {storage_of(root, value) for node in graph.nodes if (value := mutates(root, node)) is not None}
    for node in list(graph.nodes):
        module = module_of(root, node)
        idle = isinstance(module, SKIPPED) and not has_hooks(module)
        if node.target is F.dropout:
            idle = not node.kwargs.get('training', node.args[2] if len(node.args) > 2 else True)
        elif name_of(node) in ('cat', 'concat') and isinstance(node.args[0], list | tuple):
            idle = len(node.args[0]) == 1
        elif node.target is operator.truediv and isinstance(node.args[1], int | float) and node.args[1] == 1:
            total = node.args[0]
            idle = adds_a_module(total) and not written & {node, total}
        if idle:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == 'call_function' and node.target is getattr and not node.users:
            graph.erase_node(node)  # such as x.requires_grad


def adds_a_module(node: fx.Node) -> bool:
    """Whether a value is a sum with what a module makes: no whole numbers, whose quotient would be of another kind."""
    return isinstance(node, fx.Node) and name_of(node) == 'add' and any(
        term.op == 'call_module' or adds_a_module(term) for term in node.all_input_nodes)


def write_silu(root: nn.Module, graph: fx.Graph) -> None:
    """``x * sigmoid(x)``, as mmcv's ``Swish`` has it, is one function, where nothing writes into ``x``."""
    written = {storage_of(root, value) for node in graph.nodes if (value := mutates(root, node)) is not None}
    for node in list(graph.nodes):
        for gate in node.all_input_nodes if node.target in (operator.mul, torch.mul, 'mul') and not node.kwargs else ():
            is_gate = isinstance(module_of(root, gate), nn.Sigmoid) or gate.target in (torch.sigmoid, F.sigmoid, 'sigmoid')
            plain = is_gate and len(gate.users) == 1 and len(gate.all_input_nodes) == 1
            if plain and set(node.args) == {gate, *gate.all_input_nodes} and storage_of(root, gate.args[0]) not in written:
                with graph.inserting_before(node):
                    whole = graph.call_function(F.silu, tuple(gate.all_input_nodes))
                node.replace_all_uses_with(whole)
                graph.erase_node(node)
                graph.erase_node(gate)
                break


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(node.target) if node.op == 'call_module' else None


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, '__name__', '')


def channels_of(root: nn.Module, node: fx.Node) -> int | None:
    """Size of dimension 1 of a value, where the modules that it came through tell."""
    if 'channels' not in node.meta:
        node.meta['channels'] = _channels_of(root, node)
    node.meta['asked'] = True  # what is traced depends on it
    return node.meta['channels']


def _channels_of(root: nn.Module, node: fx.Node) -> int | None:
    module = module_of(root, node)
    for name in ('out_channels', 'num_features'):
        if hasattr(module, name):
            return getattr(module, name)
    if name_of(node) in ('cat', 'concat'):
        parts = [channels_of(root, source) for source in node.all_input_nodes]
        along = node.kwargs.get('dim', node.args[1] if len(node.args) > 1 else 0)
        known = along == 1 and isinstance(node.args[0], list | tuple) and len(parts) == len(node.args[0]) and None not in parts
        return sum(parts) if known else None
    keeps = isinstance(module, KEEPERS) if node.op == 'call_module' else name_of(node) in KEEPING
    if not keeps:
        return None
    known = [channels for source in node.all_input_nodes if (channels := channels_of(root, source)) is not None]
    times = module.times if isinstance(module, Tile) else 1
    return max(known) * times if known else None  # the larger: a sum broadcasts


def mutates(root: nn.Module, node: fx.Node) -> fx.Node | None:
    """The value that ``node`` changes in place, if any."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return None
    name = name_of(node)
    if node.op == 'call_module':
        in_place = getattr(module_of(root, node), 'inplace', False)
    elif node.op == 'call_method':
        in_place = name.endswith('_') and not name.endswith('__')
    else:  # F.relu(x, True)
        flagged = node.kwargs.get('inplace') is True or any(argument is True for argument in node.args)
        in_place = node.target in IN_PLACE_OPERATORS or name.endswith('_') or flagged
    return node.args[0] if in_place else None


def storage_of(root: nn.Module, node: fx.Node) -> fx.Node:
    """The node whose memory ``node`` may share: views are followed to where they come from."""
    while node.args and isinstance(node.args[0], fx.Node):
        if not (isinstance(module_of(root, node), nn.Flatten | nn.Unflatten) or name_of(node) in VIEWS):
            break
        node = node.args[0]
    return node


def constants_of(graph: fx.Graph) -> dict[str, Tensor]:
    """Tensors that a traced forward made itself, by the target of their node."""
    return vars(graph).setdefault('_made_while_tracing', {})


def graph_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A traced graph over the modules and tensors of ``root``."""
    held, constants = {}, constants_of(graph)
    for node in graph.nodes:
        if node.op == 'call_module':
            held[node.target] = root.get_submodule(node.target)
        elif node.op == 'get_attr':
            owner, _, name = node.target.rpartition('.')
            found = node.target in constants
            held[node.target] = constants[node.target] if found else getattr(root.get_submodule(owner), name)
    return fx.GraphModule(held, graph, 'TracedGraph')


def tensors_of(module: nn.Module) -> list[tuple[dict, str]]:
    """Where the parameters and buffers of one module are held, without its children."""
    return [(held, name) for held in (module._parameters, module._buffers) for name in held if name != 'num_batches_tracked']
