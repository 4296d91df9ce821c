"""A packed layer and what follows it: words, shortcut -> words for the next layer, real-valued stream.

It goes as far as each value has one reader and the epilogue of ``bnn_kernels`` can express it: tile, norms, one shortcut, one
non-linearity. The sign of the layer that reads the result goes into the same step.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import Epilogue, OpIO, PreparedOp
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.map_ops import mean_of_neighbours

from ....layers.expand import Tile, input_copies, tile
from ....layers.tokens import TokenNorm
from ...packed import PackedConv2d, PackedLayer, PackedLinear, has_hooks
from ..fold import (
    LOPSIDED,
    NORMS,
    ActPart,
    affine,
    channels_first,
    depends_on_input,
    integer_threshold,
    sign_modules,
    symmetric_padding,
    through_act,
)
from ..graph import name_of
from ..match import Match, Matcher, act_text
from ..steps import Step, UnownedModules, signs_of

FUNCTIONS = {None: lambda x: x, 'relu': F.relu, 'hardtanh': F.hardtanh, 'silu': F.silu}


@dataclass(eq=False)
class Block(Match):
    """A packed layer at ``nodes[0]`` and what is fused behind it; ``stop`` says why it ends there."""

    layer: PackedLayer = None
    tiles: int = 1
    norms: list[nn.Module] = field(default_factory=list)
    of_tokens: bool = False  # the norms, of the last dimension
    act: nn.Module | str | None = None
    stop: str = ''
    repeats: int = 1  # of the channels of the shortcut
    fold: int = 1  # channels side by side whose mean is one of the stream

    reads_words = packs = True

    @property
    def wants_flat(self) -> bool:
        """Whether a norm of a linear layer, or its non-linearity, is of dimension 1."""
        return isinstance(self.layer, PackedLinear) and ((any(self.norms) and not self.of_tokens) or channels_first(self.act))

    @property
    def width(self) -> int:
        return self.layer.weight_bits.shape[1] * self.layer.replicas * self.tiles

    def step(self, consumer, keep, in_place):
        return BlockStep(self.layer, self.tiles, self.norms, self.of_tokens, self.shortcut is not None, self.act, consumer,
                         keep, in_place, self.repeats, self.fold)


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
    if isinstance(layer, PackedConv2d) and symmetric_padding(layer) is None:
        return LOPSIDED
    if getattr(layer, 'pre_norm', None) is not None and layer.pre_norm.training:
        return 'its norm before the sign is in training mode'
    if has_hooks(layer):
        return 'has forward hooks'
    if any(t.dtype == torch.float64 for t in (*layer.parameters(), *layer.buffers())):
        return 'float64: the fused operators compute in float32'
    return ''


def match(m: Matcher) -> Iterator[Block]:
    for node in m.free():
        layer = m.module(node)
        if not isinstance(layer, PackedLayer):
            continue
        reason = m.exclude(node.target) or refusal(layer)
        if not reason and (len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node)):
            reason = 'is not called with one tensor alone'
        if reason:
            m.refused[node.target] = reason
            continue
        found = Block([node], ['conv' if isinstance(layer, PackedConv2d) else 'linear'], node.target, layer=layer)
        while (reader := m.next(found.result)) is not None and extend(m, found, reader):
            found.nodes.append(reader)
        fold(m, found)
        yield found


def extend(m: Matcher, block: Block, reader: fx.Node) -> bool:
    """Whether ``reader`` can be the next part of the block; notes it."""
    module, ended = m.module(reader), block.act is not None
    norm, of_tokens = (module.norm, True) if isinstance(module, TokenNorm) else (module, False)
    if module is not None and has_hooks(module):
        block.stop = f'{reader.target} has forward hooks'
    elif isinstance(module, Tile) and module.channel_dim == block.layer.channel_dim:
        if not (ended or block.shortcut is not None or block.norms):
            block.tiles *= module.times
            block.parts.append('tile')
            return True
    elif isinstance(norm, NORMS) and not ended and (of_tokens <= isinstance(block.layer, PackedLinear)) and (
            not block.norms or block.of_tokens == of_tokens):
        if block.shortcut is not None:
            block.stop = f'the norm {reader.target} comes after the shortcut'
        elif norm.training or norm.running_mean is None:
            block.stop = f'the norm {reader.target} takes the statistics of the batch'
        else:
            block.norms.append(norm)
            block.of_tokens = of_tokens
            block.parts.append('norm')
            return True
    elif m.is_sum(reader) and not ended and block.shortcut is None:
        block.shortcut = next(a for a in reader.args if a is not block.result)
        if copies := repeated(m, block):
            block.nodes.insert(1, block.shortcut)  # the sum will be the last one, the result
            block.shortcut, block.repeats = copies
        block.parts.append('shortcut')
        return True
    elif not ended and (act := m.act_of(reader, block.layer)) is not None:
        block.act = act
        block.parts.append(act_text(act))
        return True
    elif module is not None and not isinstance(module, PackedLayer) and not ended:
        block.stop = f'{type(module).__name__} {reader.target} stays as it is'
    return False


def repeated(m: Matcher, block: Block) -> tuple[fx.Node, int] | None:
    """What the shortcut of a linear layer repeats, and how often (:func:`bnn_plugins.layers.expand.tile`)."""
    node = block.shortcut
    plain = name_of(node) == 'cat' and len(node.users) == 1 and node not in m.taken and len(node.all_input_nodes) == 1
    if not plain or not isinstance(block.layer, PackedLinear) or not has_folds(block.layer):
        return None
    source, = node.all_input_nodes
    return (source, len(node.args[0])) if node.args == ([source] * len(node.args[0]), -1) and not node.kwargs else None


def fold(m: Matcher, block: Block) -> None:
    """Notes means of neighbouring channels (:func:`bnn_plugins.layers.tokens.match_features`) behind a linear layer of which
    only another one reads the signs."""
    groups = next((user for user in block.result.users if user.target == 'unflatten'), None)
    reader = next((user for user in block.result.users if user is not groups), None)
    layer = None if reader is None else m.module(reader)
    if groups is None or len(block.result.users) != 2 or len(groups.users) != 1 or block.wants_flat \
            or not isinstance(block.layer, PackedLinear) or not has_folds(block.layer):
        return
    mean, = groups.users
    known = mean.target == 'mean' and mean.args[1:] == (-1,) and groups.args[1] == -1 and tuple(groups.args[2][1:]) == (-1,) \
        and not mean.kwargs
    served = isinstance(layer, PackedLinear) and not (m.exclude(reader.target) or refusal(layer) or depends_on_input(layer)) \
        and len(reader.args) == 1 and input_copies(layer) == 1
    size = block.width // groups.args[2][0] if known else 1
    if served and size > 1 and size & (size - 1) == 0:
        block.fold, block.behind = size, [groups, mean]
        block.parts.append(f'means of {size}')


def has_folds(layer: PackedLayer) -> bool:
    """Whether what repeats and folds channels is there for this layer."""
    words = torch.zeros(1, 1, 1, layer.weight_bits.shape[2], dtype=torch.int32, device=layer.weight_bits.device)
    weight = layer.weight_bits[0][:, None, None]
    one = torch.ones(len(weight), device=words.device)
    return bnn_kernels.selection('folded_block2d', x_words=words, w_words=weight, epilogue=Epilogue(one, one), shortcut=None,
                                 geometry=Conv2dGeometry.of(weight.shape, layer._fan()), dtype=torch.float32, pack=False,
                                 keep=True, fold=1).backend not in (None, 'reference')


class BlockStep(Step):
    """Words, shortcut -> words, stream, or ``(words, stream)``.

    Args:
        layer: packed convolution or linear layer, 1-bit.
        tiles: how often a following tile repeats its output.
        norms: what follows; those of a linear layer are of dimension 1, but ``of_tokens`` of the last one.
        act: a module, the name of a parameterless one, or ``None``.
        consumer: the packed layer that reads the words; ``None`` for no words.
        keep: whether the stream is wanted.
        in_place: the shortcut's memory takes the stream.
        repeats: of the channels of the shortcut. fold: neighbouring channels whose mean is one of the stream.
    """

    streams = joins = True

    def __init__(self, layer: PackedLayer, tiles: int, norms: list[nn.Module], of_tokens: bool, has_shortcut: bool,
                 act: nn.Module | str | None, consumer: PackedLayer | None, keep: bool, in_place: bool, repeats: int = 1,
                 fold: int = 1):
        super().__init__()
        self.tiles, self.act, self.keep, self.in_place = tiles, act if isinstance(act, str) else None, keep, in_place
        own = act.whole[0] if isinstance(act, ActPart) else act
        self.held = UnownedModules([layer, *norms, *([own] if isinstance(own, nn.Module) else [])])
        self.norms, self.acts = UnownedModules(norms), UnownedModules([act])
        self.consumers = UnownedModules([] if consumer is None else [consumer])
        self.pack, self.has_shortcut = consumer is not None, has_shortcut
        self.is_conv = self.owns = isinstance(layer, PackedConv2d)
        self.wants_flat = not self.is_conv and ((any(norms) and not of_tokens) or channels_first(act))
        self.channels = layer._fan() * getattr(layer, 'groups', 1)
        self.options = {}  # of the public functions
        self.said = False
        self.repeats, self.fold = repeats, fold
        if self.is_conv:
            padding = layer._reversed_padding_repeated_twice[::-2]
            pad_value = layer.pad_value if layer.activation.signed else -1  # a 0 outside of the image is the bit 0
            self.options = dict(stride=tuple(layer.stride), padding=tuple(padding), dilation=tuple(layer.dilation),
                                groups=layer.groups, pad_value=pad_value)

    def layers(self) -> list[nn.Module]:
        return [*self.held, *(m for consumer in self.consumers for m in sign_modules(consumer))]

    def prepare(self) -> None:
        layer = self.held[0]
        words = layer.weight_bits[0]
        self.weight = words if self.is_conv else words[:, None, None]
        scale, bias = affine(layer, self.tiles, self.norms)
        self._fold_epilogue(scale, bias, self.acts[0], self.consumers[0] if self.consumers else None, layer.weight_bits.device)
        self.width = scale.numel()
        slope = self.epilogue.slope
        rises = self.epilogue.act != 'silu' and (slope is None or bool((slope >= 0).all()))
        self.by_integers = rises and not (self.keep or self.has_shortcut)
        if self.by_integers:
            limit, flip = integer_threshold(self.epilogue, layer.fan_in)
            self._set_constant('limit', limit)
            self._set_constant('flip', flip if bool(flip.any()) else None)
        self.bind()

    def bind(self) -> None:
        """What eager code calls: everything but words and shortcut is known."""
        self.geometry = Conv2dGeometry.of(self.weight.shape, self.channels, **self.options)
        if self.by_integers:
            self.prepared_op = PreparedOp('binary_conv2d_sign', w_words=self.weight, geometry=self.geometry,
                                          threshold=self.limit, flip=self.flip, out_groups=self.epilogue.out_groups)
        else:
            folds = dict(fold=self.fold) if self.folds else {}
            self.prepared_op = PreparedOp('folded_block2d' if folds else 'binary_block2d', w_words=self.weight,
                                          geometry=self.geometry, epilogue=self.epilogue, pack=self.pack, keep=self.keep,
                                          dtype=self.stream if self.keep else torch.float32, **folds)

    @property
    def folds(self) -> bool:
        return self.repeats > 1 or self.fold > 1

    def io(self, out, words, shortcut=None):
        if not self.is_conv and isinstance(words, Tensor):
            if self.is_apart(words, shortcut) or not (shortcut is None or shortcut.is_contiguous()):
                raise ValueError('an operator takes the shortcut, and the norm, of one image')
            words, shortcut = as_image(words), as_image(shortcut)
            shortcut = None if shortcut is None else shortcut.permute(0, 3, 1, 2)
        if self.by_integers:
            return OpIO({'x_words': words}, (out,))
        if self.folds:
            return OpIO({'x_words': words, 'shortcut': shortcut}, self.both(out))
        return OpIO({'x_words': words, 'shortcut': shortcut, 'out': shortcut if self.in_place else None}, self.both(out))

    def forward(self, words: Tensor, shortcut: Tensor | None = None):
        if not self.is_conv:
            return self.on_features(words, shortcut)
        if self.by_integers:
            if PreparedOp.direct(words):
                return self.prepared_op(x_words=words)
            return bnn_kernels.binary_conv2d_sign(words, self.weight, self.channels, self.limit, self.flip,
                                                  out_groups=self.epilogue.out_groups, **self.options)
        return self.block(words, shortcut)

    def block(self, words: Tensor, shortcut: Tensor | None):
        if PreparedOp.direct(words):
            inputs = dict(x_words=words, shortcut=shortcut, out=shortcut if self.in_place else None)
            try:
                call = self.prepared_op.choose(inputs)
            except (TypeError, ValueError):
                pass  # of the checks: the ordinary way takes other inputs, or says what is wrong
            else:
                return self.wanted(*call(**inputs))
        if shortcut is not None:
            if shortcut.shape != (words.shape[0], self.width, *self.geometry.size(words.shape[1:3])):
                return self.in_parts(words, shortcut)
        if self.in_place:
            out = bnn_kernels.binary_block2d_(shortcut, words, self.weight, self.channels, self.epilogue, pack=self.pack,
                                              **self.options)
            return self.wanted(out, shortcut)
        return self.wanted(*bnn_kernels.binary_block2d(words, self.weight, self.channels, self.epilogue, shortcut,
                                                       pack=self.pack, keep=self.keep,
                                                       dtype=self.stream if self.keep else torch.float32, **self.options))

    def on_features(self, words: Tensor, shortcut: Tensor | None):
        """A linear layer is a 1x1 convolution of an image of one column; without rows there is none."""
        if not words.numel():
            x = words.new_empty(*words.shape[:-1], self.width, dtype=self.stream)
            return self.wanted(signs_of(self.consumers[0], x) if self.pack else None, x[..., :self.width // self.fold])
        if self.is_apart(words, shortcut):
            return self.in_parts(words, shortcut)
        lead, image, shortcut = words.shape[:-1], as_image(words), as_image(shortcut)
        shortcut = None if shortcut is None else shortcut.permute(0, 3, 1, 2)
        if self.by_integers:
            out = bnn_kernels.binary_conv2d_sign(image, self.weight, self.channels, self.limit, self.flip)
            return out.view(*lead, -1)
        if self.folds and PreparedOp.direct(words):
            packed, stream = self.prepared_op(x_words=image, shortcut=shortcut)
        else:
            shortcut = shortcut if self.repeats == 1 else tile(shortcut, self.repeats, 1)
            packed, stream = bnn_kernels.binary_block2d(image, self.weight, self.channels, self.epilogue, shortcut,
                                                        pack=self.pack, keep=self.keep,
                                                        dtype=self.stream if self.keep else torch.float32)
            stream = stream if self.fold == 1 else mean_of_neighbours(stream, self.fold)
        return self.wanted(packed.view(*lead, -1) if self.pack else None,
                           stream.permute(0, 2, 3, 1).reshape(*lead, -1) if self.keep else None)

    def is_apart(self, words: Tensor, shortcut: Tensor | None) -> bool:
        """Whether a norm of a linear layer has its channels elsewhere, at dimension 1, or its shortcut another shape."""
        flat = words.dim() == 2
        return (self.wants_flat and not flat) or (shortcut is not None and shortcut.shape[:-1] != words.shape[:-1]) or (
            shortcut is not None and shortcut.shape[-1] != self.width // self.repeats)

    def in_parts(self, words: Tensor, shortcut: Tensor | None):
        """Operator by operator, where the shortcut or the norm has another shape than one operator takes."""
        if not self.said and not torch.compiler.is_compiling():
            self.said = True
            warnings.warn(f'fused {self.label} has another shape than what is added to it (or than its norm takes): what '
                          f'follows it is left to torch', stacklevel=2)
        x = self.apart(words) if self.wants_flat and words.dim() != 2 else self.affine_of(words)
        x = x if shortcut is None else x + tile(shortcut, self.repeats, -1)
        act = self.acts[0]
        x = (act if isinstance(act, nn.Module) else FUNCTIONS[act])(x).to(self.stream)
        return self.wanted(signs_of(self.consumers[0], x) if self.pack else None,
                           x if self.fold == 1 else x.unflatten(-1, (-1, self.fold)).mean(-1))

    def affine_of(self, words: Tensor) -> Tensor:
        """Without shortcut and non-linearity, by the operator."""
        image = words if self.is_conv else as_image(words)
        _, x = bnn_kernels.binary_block2d(image, self.weight, self.channels, Epilogue(self.scale, self.bias), pack=False,
                                          dtype=self.stream, **self.options)
        return x if self.is_conv else x.permute(0, 2, 3, 1).reshape(*words.shape[:-1], -1)

    def apart(self, words: Tensor) -> Tensor:
        """The same of a linear layer, whose norms are those of another dimension."""
        scale, bias = (v.float() for v in affine(self.held[0], 1, []))
        acc = self.accumulate(words)
        x = tile(tile(acc, len(scale) // acc.shape[-1], -1) * scale + bias, self.tiles, -1)
        for norm in self.norms:
            x = norm(x)
        return x

    def accumulate(self, words: Tensor) -> Tensor:
        if self.is_conv:
            return bnn_kernels.binary_conv2d(words, self.weight, self.channels, **self.options)
        return bnn_kernels.binary_linear(words, self.held[0].weight_bits[0], self.channels)

    def on_values(self, x, shortcut):
        if shortcut is not None:
            shortcut = shortcut.to(self.stream)
            shortcut = shortcut.clone(memory_format=torch.channels_last if self.is_conv else torch.contiguous_format)
        made = self.both(self(signs_of(self.held[0], x), shortcut))
        return made if self.fold == 1 else (made[0], self.unfolded(x, shortcut))

    def unfolded(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """The stream whose means are taken."""
        step = BlockStep(self.held[0], self.tiles, self.norms, True, self.has_shortcut, self.acts[0], None, True, False,
                         self.repeats)
        step.stream = self.stream
        step.prepare()
        return step(signs_of(self.held[0], x), shortcut)

    def error_bound(self, x, shortcut, expected):
        layer = self.held[0]
        scale, bias = affine(layer, self.tiles, self.norms, sizes=True)
        acc = self.accumulate(signs_of(layer, x))
        acc = tile(acc.double().abs(), len(scale) // acc.shape[layer.channel_dim], layer.channel_dim)
        if self.is_conv:
            scale, bias = scale.view(-1, 1, 1), bias.view(-1, 1, 1)
        total = acc * scale + bias
        total = total if shortcut is None else total + tile(shortcut.double().abs(), self.repeats, layer.channel_dim)
        return through_act(total, self.acts[0], layer.channel_dim) * self.rounding(expected)


def as_image(features: Tensor | None) -> Tensor | None:
    """``[..., C]`` as ``[1, rows, 1, C]``."""
    return None if features is None else features.reshape(1, -1, 1, features.shape[-1])
