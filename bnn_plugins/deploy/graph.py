"""What a packed model computes, as a graph: torch.fx with packed layers, norms and non-linearities as leaves.

A *region* is a module whose forward could be traced. What cannot be (control flow that depends on data) is left as a call in
the graph around it, and is searched for smaller regions itself.
"""

import dataclasses
import inspect
import operator
import threading
from collections.abc import Callable

from torch import Tensor, fx, nn
from torch.fx.immutable_collections import immutable_dict
from torch.nn import functional as F

from ..layers import RPReLU
from ..layers.expand import Tile

# fx replaces nn.Module.__call__ while it traces, for the whole process.
TRACING = threading.RLock()
LEAVES = (RPReLU, Tile)
SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
VIEWS = {'view', 'reshape', 'flatten', 'unflatten', 'permute', 'transpose', 'chunk', 'split', 'narrow', 'squeeze', 'unsqueeze',
         'expand', 'expand_as', 'contiguous', 'detach', 'unbind', 'select', 't', 'to', 'float', 'getitem'}
# Modules and functions whose result has the channels of their input.
KEEPERS = (*SKIPPED, RPReLU, Tile, nn.PReLU, nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.MaxPool2d, nn.AvgPool2d,
           nn.AdaptiveAvgPool2d)
KEEPING = {'add', 'iadd', 'add_', 'sub', 'mul', 'relu', 'hardtanh', 'leaky_relu', 'avg_pool2d', 'max_pool2d',
           'adaptive_avg_pool2d', 'interpolate', 'contiguous'}
IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


class Untraceable(Exception):
    """Raised while tracing: ``where`` is the name of the module inside of which fx gave up ('' is the root)."""

    def __init__(self, where: str, why: str):
        super().__init__(why)
        self.where, self.why = where, why


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


class Tracer(fx.Tracer):
    """Traces ``method`` of a module for evaluation.

    Args:
        layers: classes of the binary layers.
        opaque: names of modules that are called as they are.
        method: name of the traced method.
        length: of the first argument, where this is a tuple of tensors.
    """

    def __init__(self, layers: type | tuple[type, ...], opaque: set[str] = frozenset(), method: str = 'forward',
                 length: int | None = None):
        super().__init__()
        self.layers, self.opaque, self.traced_func_name, self.length = layers, opaque, method, length
        self.inlined: list[nn.Module] = []

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
        return graph

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args=None) -> tuple[Callable, list]:
        names, defaults = arguments_of(root_fn)
        modes = [name for name, default in defaults.items() if isinstance(default, str)]
        if modes:
            raise ValueError(f'its argument {modes[0]} is a str, so that what it computes depends on it')
        # In OpenMMLab, in_channels says what the first argument has: a list where it is a tuple of maps.
        channels = getattr(self.root, 'in_channels', None)
        arguments = []
        for parameter in names:
            if self.length is None or arguments:
                arguments.append(self.input(parameter, channels if not arguments and isinstance(channels, int) else None))
            else:
                arguments.append(tuple(self.input(f'{parameter}_{i}', channels[i]) for i in range(self.length)))
        return root_fn, [self.root, *arguments]

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
        return Value(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if obj.node.target is getattr and obj.node.args[1] == 'requires_grad':
            return False  # activation checkpointing asks; there is nothing to train
        return super().to_bool(obj)

    def create_proxy(self, kind: str, target, args: tuple, kwargs: dict, *other, **more):
        """Numbers of channels are no secret: code that asks for ``x.shape[1]`` gets the number."""
        asked = None
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
        if contains(m, self.layers):
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
        ValueError: for ``*args`` and ``**kwargs``, which can be anything.
    """
    _, *parameters = inspect.signature(function).parameters.values()
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(f'it takes {parameter}')
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return [p.name for p in parameters if p.name not in defaults], defaults


def contains(module: nn.Module, layers: type | tuple[type, ...]) -> bool:
    return any(isinstance(m, layers) for m in module.modules())


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f'{type(error).__name__}: {text[0]}' if text else type(error).__name__


def trace_region(module: nn.Module, layers: type | tuple[type, ...], method: str = 'forward') -> tuple[Tracer, fx.Graph]:
    """Trace ``method`` of ``module``; modules inside that cannot be traced become calls.

    Raises:
        Untraceable: when the method itself cannot be.
    """
    opaque: set[str] = set()
    channels = getattr(module, 'in_channels', None)
    length = len(channels) if isinstance(channels, list | tuple) and method == 'forward' else None
    while True:
        tracer = Tracer(layers, opaque, method, length)
        try:
            return tracer, tracer.trace(module)
        except Untraceable as error:
            if error.where == '' or error.where in opaque:
                raise
            opaque = opaque | {error.where}


def skip_nothings(root: nn.Module, graph: fx.Graph) -> None:
    """Remove what does nothing in evaluation, and what nobody reads."""
    for node in list(graph.nodes):
        module = module_of(root, node)
        idle = isinstance(module, SKIPPED) and not has_hooks(module)
        if node.target is F.dropout:
            idle = not node.kwargs.get('training', node.args[2] if len(node.args) > 2 else True)
        elif name_of(node) in ('cat', 'concat') and isinstance(node.args[0], list | tuple):
            idle = len(node.args[0]) == 1
        if idle:
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if node.op == 'call_function' and node.target is getattr and not node.users:
            graph.erase_node(node)  # such as x.requires_grad


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    return root.get_submodule(node.target) if node.op == 'call_module' else None


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, '__name__', '')


def channels_of(root: nn.Module, node: fx.Node) -> int | None:
    """Size of dimension 1 of a value, where the modules that it came through tell."""
    if 'channels' not in node.meta:
        node.meta['channels'] = _channels_of(root, node)
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


def graph_module(root: nn.Module, graph: fx.Graph, constants: dict[str, Tensor],
                 steps: dict[str, nn.Module]) -> fx.GraphModule:
    """A graph over the modules and tensors of ``root``, and ``steps`` by their target."""
    held = {}
    for node in graph.nodes:
        if node.op == 'call_module':
            held[node.target] = steps[node.target] if node.target in steps else root.get_submodule(node.target)
        elif node.op == 'get_attr':
            owner, _, name = node.target.rpartition('.')
            found = node.target in constants
            held[node.target] = constants[node.target] if found else getattr(root.get_submodule(owner), name)
    return fx.GraphModule(held, graph, 'FusedGraph')


def tensors_of(module: nn.Module) -> list[tuple[dict, str]]:
    """Where the parameters and buffers of one module are held, without its children."""
    return [(held, name) for held in (module._parameters, module._buffers) for name in held if name != 'num_batches_tracked']
