"""Which nodes of a traced graph become one fused step.

A *chain* is a packed layer and what follows it as long as each value has one reader and the epilogue of ``bnn_kernels`` can
express it: tile, norms, one shortcut, one non-linearity. The sign of the layer that reads its result goes into the same step.
A *stem* is a real convolution of an image and what lies between it and a binary convolution.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.nn import functional as F

from ..layers.expand import Tile
from .fuse_fold import LOPSIDED, NORMS, act_kind, pair, symmetric_padding
from .fuse_ops import AffineStep, ConvStep, DownsampleStep, Step
from .fuse_stem import Stem, is_plain_pool, may_begin_stem, stem_refusal
from .graph import has_hooks, module_of, mutates, name_of, storage_of
from .packed import PackedConv2d, PackedLayer, PackedLinear

ADDS = (operator.add, operator.iadd, torch.add)
ACTS = {F.relu: 'relu', torch.relu: 'relu', 'relu': 'relu', 'relu_': 'relu', F.hardtanh: 'hardtanh', torch.tanh: None}


@dataclass
class Chain:
    """A packed layer at ``nodes[0]`` and what is fused behind it; ``nodes[-1]`` is the result."""

    name: str
    layer: PackedLayer
    nodes: list[fx.Node]
    tiles: int = 1
    norms: list[nn.Module] = field(default_factory=list)
    shortcut: fx.Node | None = None
    act: nn.Module | str | None = None
    parts: list[str] = field(default_factory=list)
    stop: str = ''

    @property
    def input(self) -> fx.Node:
        return self.nodes[0].args[0]

    @property
    def result(self) -> fx.Node:
        return self.nodes[-1]


def refusal(layer: PackedLayer) -> str:
    """Why a packed layer cannot be fused at all; ''."""
    activation = layer.activation
    if activation.bits == 32:
        return 'real activations: nothing is computed in bits'
    if activation.bits > 1 or layer.w_bits > 1:
        return f'{layer.w_bits}-bit weights, {activation.bits}-bit activations: the fused operators are 1-bit'
    if getattr(layer, 'gain', None) is not None:
        return 'its scale depends on the input'
    if type(layer) not in (PackedConv2d, PackedLinear):
        return f'a {type(layer).__name__} computes more than a convolution'
    if isinstance(layer, PackedConv2d):
        if symmetric_padding(layer) is None:
            return LOPSIDED
    if getattr(layer, 'pre_norm', None) is not None and layer.pre_norm.training:
        return 'its norm before the sign is in training mode'
    if layer._forward_hooks or layer._forward_pre_hooks:
        return 'has forward hooks'
    if any(t.dtype == torch.float64 for t in (*layer.parameters(), *layer.buffers())):
        return 'float64: the fused operators compute in float32'
    return ''


class Matcher:
    """Finds chains, stems, downsamples and norms in a traced graph.

    Attributes:
        chains: ``{first node: Chain}``.
        float_parts: ``{last node: (nodes, make)}``, ``make()`` builds the step.
        stems: ``{last node: Stem}``.
        interior: nodes that a step stands for, but for the last one.
        unfusable_sums: names of layers whose result is added to something of another shape: torch adds them.
        refused: ``{layer name: reason}``.
        unfused: the same for convolutions that could have begun a stem.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, exclude: Callable[[str], str],
                 unfusable_sums: set[str] = frozenset()):
        self.root, self.graph, self.exclude, self.unfusable_sums = root, graph, exclude, unfusable_sums
        self.chains: dict[fx.Node, Chain] = {}
        self.float_parts: dict[fx.Node, tuple[list[fx.Node], Callable[[], Step]]] = {}
        self.stems: dict[fx.Node, Stem] = {}
        self.interior: set[fx.Node] = set()
        self.refused: dict[str, str] = {}
        self.unfused: dict[str, str] = {}
        self.taken: set[fx.Node] = set()
        for node in graph.nodes:
            if node.op == 'call_module' and isinstance(module_of(root, node), PackedLayer):
                self.add_chain(node)
        self.chain_of = {chain.result: chain for chain in self.chains.values()}
        for node in graph.nodes if self.chains else ():
            self.add_stem(node)
        for chain in self.chains.values():
            if isinstance(chain.layer, PackedConv2d):
                if chain.shortcut is not None:
                    self.add_downsample(chain.shortcut)
                self.add_norm(chain.input)
        for node in graph.nodes:
            if node not in self.taken:
                self.add_conv(node)
        # What something changes in place has no one value: readers take it when it is their turn.
        touched = [mutates(root, node) for node in graph.nodes if node not in self.taken]
        places = {storage_of(root, value) for value in touched if value is not None}
        self.changed = {node for node in graph.nodes if places and storage_of(root, node) in places}

    def take(self, nodes: list[fx.Node]) -> None:
        self.interior.update(nodes[:-1])
        self.taken.update(nodes)

    def next(self, node: fx.Node) -> fx.Node | None:
        """The only reader of ``node``, which reads it once."""
        if len(node.users) != 1:
            return None
        (reader,) = node.users
        once = sum(argument is node for argument in reader.args) == 1
        return reader if once and reader.op != 'output' and reader not in self.taken else None

    def add_chain(self, node: fx.Node) -> None:
        layer, name = module_of(self.root, node), node.target
        reason = self.exclude(name) or refusal(layer)
        if not reason and (len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node)):
            reason = 'is not called with one tensor alone'
        if reason:
            self.refused[name] = reason
            return
        chain = Chain(name, layer, [node], parts=['conv' if isinstance(layer, PackedConv2d) else 'linear'])
        while True:
            reader = self.next(chain.result)
            if reader is None or not self.extend(chain, reader):
                break
            chain.nodes.append(reader)
        self.take(chain.nodes)
        self.chains[node] = chain

    def extend(self, chain: Chain, reader: fx.Node) -> bool:
        """Whether ``reader`` can be the next part of the chain; notes it."""
        module = module_of(self.root, reader)
        # A linear layer in a plain step of its own: what follows has another shape than it.
        ended = chain.act is not None or (chain.name in self.unfusable_sums and isinstance(chain.layer, PackedLinear))
        if module is not None and (module._forward_hooks or module._forward_pre_hooks):
            chain.stop = f'{reader.target} has forward hooks'
        elif isinstance(module, Tile) and module.channel_dim == chain.layer.channel_dim:
            if not (ended or chain.shortcut is not None or chain.norms):
                chain.tiles *= module.times
                chain.parts.append('tile')
                return True
        elif isinstance(module, NORMS) and not ended:
            if chain.shortcut is not None:
                chain.stop = f'the norm {reader.target} comes after the shortcut'
            elif module.training or module.running_mean is None:
                chain.stop = f'the norm {reader.target} takes the statistics of the batch'
            else:
                chain.norms.append(module)
                chain.parts.append('norm')
                return True
        elif self.is_sum(reader) and not ended and chain.shortcut is None and chain.name not in self.unfusable_sums:
            chain.shortcut = next(a for a in reader.args if a is not chain.result)
            chain.parts.append('shortcut')
            return True
        elif not ended and (act := self.act_of(reader, chain.layer)) is not None:
            chain.act = act
            chain.parts.append(type(act).__name__ if isinstance(act, nn.Module) else act)
            return True
        elif module is not None and isinstance(module, nn.Module) and not isinstance(module, PackedLayer) and not ended:
            chain.stop = f'{type(module).__name__} {reader.target} stays as it is'
        return False

    def is_sum(self, node: fx.Node) -> bool:
        """``a + b`` of two values of the graph that may be written into ``a``."""
        if node.target not in ADDS and not (node.op == 'call_method' and node.target in ('add', 'add_')):
            return False
        if len(node.args) != 2 or node.kwargs or not all(isinstance(a, fx.Node) and a.op != 'get_attr' for a in node.args):
            return False
        written = mutates(self.root, node)
        mine = written is not None and len(written.users) == 1 and written.op != 'placeholder'
        return written is None or (mine and storage_of(self.root, written) is written)

    def act_of(self, node: fx.Node, layer: PackedLayer) -> nn.Module | str | None:
        module = module_of(self.root, node)
        if module is not None:
            return module if act_kind(module) is not None and not linear_mismatch(module, layer) else None
        plain = len(node.args) == 1 and set(node.kwargs) <= {'inplace'}
        return ACTS.get(node.target) if plain and node.op in ('call_function', 'call_method') else None

    def add_stem(self, node: fx.Node) -> None:
        """A real convolution of an image, and what lies between it and a binary convolution."""
        conv = module_of(self.root, node)
        if not is_float_conv(conv) or not may_begin_stem(conv) or len(node.args) != 1:
            return
        stem, reason = Stem(conv, [node]), stem_refusal(conv)
        while not reason and self.extend_stem(stem):
            pass
        result = stem.nodes[-1]
        if not reason and not any(c.input is result and isinstance(c.layer, PackedConv2d) for c in self.chains.values()):
            follower = self.next(result)
            reason = (f'{follower.target} stays as it is' if follower is not None and follower.op == 'call_module' else
                      'no binary convolution reads what it makes')
        if reason:
            self.unfused[node.target] = reason
            return
        self.take(stem.nodes)
        self.stems[result] = stem

    def extend_stem(self, stem: Stem) -> bool:
        """Whether what follows can be the next part of the stem; notes it. Pooling comes first: so do the native networks."""
        reader = self.next(stem.nodes[-1]) or self.copying(stem.nodes[-1])
        module = None if reader is None else module_of(self.root, reader)
        if reader is None or stem.act is not None or (module is not None and has_hooks(module)):
            return False
        if is_plain_pool(module) and stem.pool is None and not stem.affines:
            stem.pool = module
            stem.parts.append('pool')
        elif isinstance(module, nn.BatchNorm2d) and self.is_plain_norm(reader):
            stem.affines.append(module)
            stem.parts.append('norm')
        elif isinstance(module, Tile) and module.channel_dim == 1:
            stem.affines.append(module)
            stem.parts.append('tile')
        elif name_of(reader) == 'cat':  # a tile that a forward has made
            stem.affines.append(Tile(len(reader.args[0])))
            stem.parts.append('tile')
        elif (act := self.act_of(reader, None)) is not None:
            stem.act = act
            stem.parts.append(type(act).__name__ if isinstance(act, nn.Module) else act)
        else:
            return False
        stem.nodes.append(reader)
        return True

    def copying(self, node: fx.Node) -> fx.Node | None:
        """The only reader of ``node``, where it repeats its channels (:func:`bnn_plugins.layers.expand.tile`)."""
        reader = next(iter(node.users), None)
        copies = len(node.users) == 1 and name_of(reader) == 'cat' and reader.args == ([node] * len(reader.args[0]), 1)
        return reader if copies and reader not in self.taken else None

    def add_downsample(self, result: fx.Node) -> None:
        """Pooling, 1x1 convolution and norm that end at ``result``."""
        nodes, norms, node = [], [], result
        while isinstance(module_of(self.root, node), nn.BatchNorm2d) and self.is_plain_norm(node):
            norms.insert(0, module_of(self.root, node))
            nodes.insert(0, node)
            node = node.args[0]
        conv = module_of(self.root, node)
        if not is_float_conv(conv) or not is_pointwise(conv) or not self.single([node, *nodes]):
            return
        nodes.insert(0, node)
        pool, before = 1, node.args[0]
        module = module_of(self.root, before)
        if isinstance(module, nn.AvgPool2d) and len(before.users) == 1 and (size := pool_size(module)) \
                and not has_hooks(module):
            nodes.insert(0, before)
            pool = size
        if conv.weight.dtype != torch.float64:
            self.take(nodes)
            self.float_parts[result] = (nodes, lambda: DownsampleStep(pool, conv, norms))

    def add_norm(self, result: fx.Node) -> None:
        """A norm without a convolution before it, and its non-linearity, that end at ``result``."""
        if result in self.taken:
            return
        act, node, nodes = None, result, [result]
        module = module_of(self.root, node)
        if not isinstance(module, nn.BatchNorm2d):
            act = self.act_of(node, None)
            if act is None or not node.args or not isinstance(node.args[0], fx.Node) or (module and has_hooks(module)):
                return
            node = node.args[0]
            nodes.insert(0, node)
        norm = module_of(self.root, node)
        if isinstance(norm, nn.BatchNorm2d) and self.is_plain_norm(node) and self.single(nodes) and node not in self.taken:
            if not is_float_conv(module_of(self.root, node.args[0])) or len(node.args[0].users) > 1:
                self.take(nodes)
                self.float_parts[result] = (nodes, lambda: AffineStep(norm, act))

    def add_conv(self, node: fx.Node) -> None:
        """A real convolution, its norm and non-linearity."""
        conv, nodes, norms, act = module_of(self.root, node), [node], [], None
        if not is_float_conv(conv) or has_hooks(conv) or len(node.args) != 1 or conv.weight.dtype == torch.float64:
            return
        while (reader := self.next(nodes[-1])) is not None and act is None:
            module = module_of(self.root, reader)
            if isinstance(module, nn.BatchNorm2d) and self.is_plain_norm(reader):
                norms.append(module)
            elif (act := self.act_of(reader, None)) is None or (module is not None and has_hooks(module)):
                act = None
                break
            nodes.append(reader)
        self.take(nodes)
        self.float_parts[nodes[-1]] = (nodes, lambda: ConvStep(conv, norms, act))

    def is_plain_norm(self, node: fx.Node) -> bool:
        norm = module_of(self.root, node)
        return not norm.training and norm.running_mean is not None and not has_hooks(norm) and node not in self.taken \
            and norm.running_mean.dtype != torch.float64

    def single(self, nodes: list[fx.Node]) -> bool:
        """Whether nothing else reads what the next of ``nodes`` reads."""
        return all(len(node.users) == 1 for node in nodes[:-1])


def linear_mismatch(act: nn.Module, layer: PackedLayer | None) -> bool:
    """Whether a non-linearity has its channels elsewhere than the layer before it."""
    return getattr(act, 'channel_dim', 1) == -1 and not isinstance(layer, PackedLinear)


def is_float_conv(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and module.padding_mode == 'zeros' \
        and type(module)._conv_forward is nn.Conv2d._conv_forward and 'weight' in module._parameters


def is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == conv.dilation == (1, 1) and conv.padding == (0, 0) and conv.groups == 1 \
        and not has_hooks(conv)


def pool_size(pool: nn.AvgPool2d) -> int:
    """Window and stride of a pooling that ``downsample2d`` knows, else 0."""
    sizes = {*pair(pool.kernel_size), *pair(pool.stride)}
    known = len(sizes) == 1 and pair(pool.padding) == (0, 0) and pool.ceil_mode and not pool.count_include_pad
    return sizes.pop() if known and pool.divisor_override is None else 0
