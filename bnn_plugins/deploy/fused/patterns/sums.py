"""Norms, scales and shifts of channels, sums, and the non-linearity behind them: one pass over all maps, and the signs.

Of tokens, whose channels come last, wherever they are; of images in front of a binary convolution.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

import bnn_kernels
from bnn_kernels import Epilogue, OpIO, PreparedOp
from bnn_kernels.checks import MOST_MAPS
from bnn_kernels.map_ops import named, spread_over

from ....layers import RPReLU
from ....layers.tokens import LayerScale, TokenNorm
from ...packed import PackedConv2d, PackedLayer, has_hooks
from ..fold import NORMS, is_float_conv, sign_modules, through_act, through_norms
from ..match import Match, Matcher, act_text
from ..steps import KNOWN, Step, Tail, UnownedModules, signs_of

WHOLE = slice(None)


@dataclass
class Tree:
    """What a sum is made of: the map of this number, ``module`` of a tree, or two trees added."""

    parts: list['Tree'] = field(default_factory=list)
    module: nn.Module | None = None
    number: int = -1


@dataclass(eq=False)
class Sum(Match):
    tree: Tree = None
    maps: list[fx.Node] = field(default_factory=list)
    spread: list[int] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    act: nn.Module | str | None = None
    of_tokens: bool = False
    there: bool = False

    kind, packs = 'sum', True

    @property
    def input(self):
        return self.maps[0]

    @property
    def others(self):
        return self.maps[1:]

    @property
    def makes_images(self):
        return not self.of_tokens

    def step(self, consumer, keep, in_place):
        return SumStep(self, consumer, keep)


def match(m: Matcher) -> Iterator[Sum]:
    there = has_sums(m)
    inputs = {reader.input for reader in m.readers if isinstance(reader.layer, PackedConv2d)}
    for node in reversed(list(m.free())):
        if node in m.taken:
            continue
        found = image(m, node) if node in inputs else tokens(m, node) if there else None
        if found is not None:
            found.there = there
            yield found


def has_sums(m: Matcher) -> bool:
    """Whether another backend than the reference has the operator."""
    device = next((t.device for t in (*m.root.parameters(), *m.root.buffers())), torch.device('cpu'))
    one = torch.ones(1, device=device)
    return bnn_kernels.selection('weighted_sum2d', x=one.view(1, 1, 1, 1), epilogue=Epilogue(one, one), spread=(1, 1),
                                 weight=None, dtype=torch.float32, pack=False, keep=True).backend not in (None, 'reference')


def image(m: Matcher, result: fx.Node) -> Sum | None:
    """A norm, and its non-linearity, that end at ``result``."""
    found, node = Sum([result], label=result.name), result
    if not m.is_plain_norm(node):
        module, found.act = m.module(node), m.act_of(node, None)
        if found.act is None or not node.args or not isinstance(node.args[0], fx.Node) or (module and has_hooks(module)):
            return None
        node = node.args[0]
        found.nodes.insert(0, node)
    if not m.is_plain_norm(node) or (node is not result and len(node.users) > 1):
        return None
    if is_float_conv(m.module(node.args[0])) and len(node.args[0].users) == 1:
        return None  # it is folded into the convolution
    found.label = node.target
    found.maps, found.spread, found.modules = [node.args[0]], [1], [m.module(node)]
    found.tree = Tree([Tree(number=0)], found.modules[0])
    return found


def tokens(m: Matcher, result: fx.Node) -> Sum | None:
    """What ends at ``result``."""
    found, node, module = Sum([result], label=result.name, of_tokens=True), result, m.module(result)
    if type(module) is RPReLU and module.channel_dim == -1 and not has_hooks(module) and not is_written(m, node):
        found.act, node = module, node.args[0]
        if len(node.users) > 1 or node in m.taken:
            return None
        found.nodes.insert(0, node)
    found.tree = grow(m, found, node)
    if not (found.modules or found.act is not None) or found.tree.number >= 0 or not 0 < len(found.maps) <= MOST_MAPS:
        return None
    if 1 not in found.spread:
        return None
    first = found.spread.index(1)
    order = [first, *(place for place in range(len(found.maps)) if place != first)]
    found.maps, found.spread = ([values[place] for place in order] for values in (found.maps, found.spread))
    renumber(found.tree, {old: new for new, old in enumerate(order)})
    return found


def grow(m: Matcher, found: Sum, node: fx.Node) -> Tree:
    """The tree of ``node``, which is taken; its maps, and the modules and nodes in it, are noted."""
    module = m.module(node)
    if isinstance(module, TokenNorm) and isinstance(module.norm, NORMS) and not module.norm.training \
            and module.norm.running_mean is not None and not has_hooks(module) and not has_hooks(module.norm):
        found.modules.append(module.norm)
        return Tree([branch(m, found, node.args[0])], module.norm)
    if type(module) is LayerScale and not has_hooks(module):
        found.modules.append(module)
        return Tree([branch(m, found, node.args[0])], module)
    if node.target is operator.add and all(isinstance(a, fx.Node) and a.op != 'get_attr' for a in node.args):
        return Tree([branch(m, found, argument) for argument in node.args])
    return leaf(found, node, 1)


def branch(m: Matcher, found: Sum, node: fx.Node) -> Tree:
    """The tree of a node that another one reads."""
    spread = spread_back(node) if node not in m.taken else None
    if spread is not None:
        found.nodes[:0] = spread[2]
        return leaf(found, spread[0], spread[1])
    alone = len(node.users) == 1 and node not in m.taken and node not in found.nodes and node.op in ('call_module',
                                                                                                     'call_function')
    before = len(found.nodes)
    found.nodes.insert(0, node)
    tree = grow(m, found, node) if alone else leaf(found, node, 1)
    if tree.number >= 0:
        del found.nodes[len(found.nodes) - before - 1]
    return tree


def leaf(found: Sum, node: fx.Node, spread: int) -> Tree:
    found.maps.append(node)
    found.spread.append(spread)
    return Tree(number=len(found.maps) - 1)


def renumber(tree: Tree, places: dict[int, int]) -> None:
    tree.number = places.get(tree.number, -1)
    for part in tree.parts:
        renumber(part, places)


def is_written(m: Matcher, node: fx.Node) -> bool:
    return len(node.args) != 1 or bool(node.kwargs) or not isinstance(node.args[0], fx.Node)


def spread_back(node: fx.Node) -> tuple[fx.Node, int, list[fx.Node]] | None:
    """The map, how far its tokens are spread, and the nodes of :func:`bnn_plugins.layers.tokens.spread_back` that end at
    ``node``."""
    nodes, size = [], None
    for dim in (2, 1):
        places = (WHOLE,) * dim
        index = node.args[1] if node.target is operator.getitem else None
        if not isinstance(index, tuple) or index[:dim] != places or len(index) != dim + 1:
            return None
        cut, repeat = node, node.args[0]
        if not isinstance(repeat, fx.Node) or repeat.target != 'repeat_interleave' or repeat.args[2:] != (dim,):
            return None
        if size not in (None, repeat.args[1]) or len(cut.users) != 1 or len(repeat.users) != 1:
            return None
        nodes[:0], size, node = [repeat, cut], repeat.args[1], repeat.args[0]
    return (node, size, nodes) if isinstance(size, int) else None


class SumStep(Step):
    """Maps -> words, stream, or ``(words, stream)``.

    Args:
        found: what it stands for. consumer: the packed layer that reads the words; ``None`` for no words. keep: whether the
            stream is wanted.
    """

    owns = streams = adds_several = True

    def __init__(self, found: Sum, consumer: PackedLayer | None, keep: bool):
        super().__init__()
        self.tree, self.spread, self.tail = (found.tree,), found.spread, Tail(found.act)
        self.held, self.text = UnownedModules(found.modules), 'sum of maps' if len(found.maps) > 1 else 'affine'
        if found.act is not None:
            self.text += f', {act_text(found.act)}'
        self.consumers = UnownedModules([] if consumer is None else [consumer])
        self.pack, self.keep = consumer is not None, keep or consumer is None
        self.is_conv, self.joins = not found.of_tokens, found.there
        self.owns = self.is_conv

    def layers(self) -> list[nn.Module]:
        return [*self.held, *self.tail.modules, *(m for consumer in self.consumers for m in sign_modules(consumer))]

    def prepare(self) -> None:
        weights, bias = self.affine()
        device = bias.device
        alone = len(weights) == 1
        self._set_constant('weight', None if alone else weights.float())
        scale = weights[0] if alone else torch.ones_like(bias)
        self._fold_epilogue(scale, bias, self.tail.act, self.consumers[0] if self.consumers else None, device)
        self._set_constant('shift', self.tail.prepare(bias).float().view(-1, 1, 1))
        self.spreads = (*self.spread, 1)
        self.prepared_op = PreparedOp('weighted_sum2d', epilogue=self.epilogue, spread=self.spreads, weight=self.weight,
                                      dtype=self.stream, pack=self.pack, keep=self.keep)

    def affine(self, sizes: bool = False) -> tuple[Tensor, Tensor]:
        """Weights float64 ``[maps, C]`` and bias ``[C]``; ``sizes``: the sums of magnitudes that they are made of."""
        example = next(iter(module.running_mean if isinstance(module, NORMS) else module.scale for module in self.held), None)
        example = self.tail.modules[0].slope if example is None else example
        none = torch.zeros(len(self.spread), len(example), dtype=torch.float64, device=example.device)

        def through(tree: Tree) -> tuple[Tensor, Tensor]:
            if tree.number >= 0:
                weights = none.clone()
                weights[tree.number] = 1
                return weights, none[0]
            parts = [through(part) for part in tree.parts]
            weights, bias = sum(weights for weights, _ in parts), sum(bias for _, bias in parts)
            if isinstance(tree.module, NORMS):
                scale, bias = through_norms(torch.ones_like(bias), bias, [tree.module], sizes)
                return weights * scale, bias
            if tree.module is not None:
                scale, shift = (v.detach().double() for v in (tree.module.scale, tree.module.shift))
                scale, shift = (scale.abs(), shift.abs()) if sizes else (scale, shift)
                return weights * scale, bias * scale + shift
            return weights, bias

        return through(self.tree[0])

    def io(self, out, *maps):
        if isinstance(maps[0], Tensor):
            maps = self.images(maps)
            if maps is None:
                raise ValueError('an operator takes maps of one size')
        return OpIO(named(maps), self.both(out))

    def images(self, maps: tuple[Tensor, ...]) -> list[Tensor] | None:
        """The maps as the operator takes them; ``None`` where their sizes do not fit."""
        first = maps[0]
        alike = all(x.dtype == first.dtype and x.dim() == first.dim() for x in maps)
        if not alike or first.dtype not in KNOWN or not first.numel():
            return None
        if self.is_conv:
            return list(maps) if first.dim() == 4 else None
        if max(self.spread) == 1 and all(x.shape == first.shape for x in maps):
            return [x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2) for x in maps]
        fits = first.dim() == 4 and all(
            x.shape == (first.shape[0], *(-(-side // size) for side in first.shape[1:3]), first.shape[3])
            for x, size in zip(maps, self.spread, strict=True))
        return [x.permute(0, 3, 1, 2) for x in maps] if fits else None

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = self.images(maps)
        if self.joins and images is not None and PreparedOp.direct(maps[0]):
            words, stream = self.prepared_op(**named(images))
            if not self.is_conv:
                words = words.view(*maps[0].shape[:-1], -1) if self.pack else words
                stream = stream.permute(0, 2, 3, 1).reshape(maps[0].shape) if self.keep else stream
            return self.wanted(words, stream)
        stream = self.plain(maps)
        return self.wanted(signs_of(self.consumers[0], stream) if self.pack else None, stream)

    def plain(self, maps: tuple[Tensor, ...]) -> Tensor:
        """By torch, in as few passes as it takes."""
        if not self.is_conv:
            maps = [x.unsqueeze(0).transpose(0, -1).squeeze(-1) if x.dim() < 4 else x.permute(0, 3, 1, 2) for x in maps]
        total = None
        for number, (x, size) in enumerate(zip(maps, self.spread, strict=True)):
            x = spread_over(x, size, maps[0].shape[2:]).float()
            term = x if self.weight is None else x * self.weight[number].view(-1, 1, 1)
            total = term if total is None else total + term
        x = self.tail(torch.addcmul(self.shift, total, self.scale.view(-1, 1, 1))).to(self.stream)
        if self.is_conv:
            return x.contiguous(memory_format=torch.channels_last)
        return x.permute(0, 2, 3, 1).contiguous()

    def on_values(self, x, shortcut):
        return self.both(self(x, *shortcut))

    def error_bound(self, x, shortcut, expected):
        weights, bias = self.affine(sizes=True)
        shape = (-1, 1, 1) if self.is_conv else (-1,)
        total = bias.view(shape)
        for value, weight, size in zip((x, *shortcut), weights, self.spread, strict=True):
            value = value.double().abs()
            if size > 1:
                value = spread_over(value.permute(0, 3, 1, 2), size, x.shape[1:3]).permute(0, 2, 3, 1)
            total = total + value * weight.view(shape)
        return through_act(total, self.tail.act, 1 if self.is_conv else -1) * self.rounding(expected)
