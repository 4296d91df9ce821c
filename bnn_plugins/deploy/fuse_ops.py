"""The steps of a fused graph: each holds constants folded from the layers that it stands for.

Folding (fuse_fold.py) is done in float64 and rounded once. ``prepare`` folds again, into the same tensors where it can, so
that compiled code sees new values.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import Epilogue, OpIO, PreparedOp
from bnn_kernels.geometry import Conv2dGeometry

from ..layers.base import input_copies
from ..layers.expand import tile
from .fuse_fold import (
    act_vectors,
    affine,
    channels_first,
    depends_on_input,
    folded_weight,
    integer_threshold,
    sign_modules,
    sign_threshold,
    through_norms,
)
from .packed import PackedConv2d, PackedLayer, memory_format


class Broadcast(Exception):
    """A shortcut has another shape than the convolution beside it: ``step`` adds it where it should have been torch."""

    def __init__(self, step: str):
        super().__init__(step)
        self.step = step


class Step(nn.Module):
    """Base. Constants are plain attributes: they belong to no state dict, and reading them costs nothing.

    Attributes:
        label: name of the layer that it stands for.
        text: what is fused.
        stream, host: dtype of the real-valued stream between steps, and of the model.
        joins: whether ``prepared_op`` is all that it runs, so that it can be one call with its neighbours.
        pack, keep: whether it returns words, and a stream; with both a tuple of them.
    """

    label = text = ''
    stream = host = torch.float32
    joins = pack = keep = False

    def layers(self) -> list[nn.Module]:
        """The modules whose tensors the constants are made of."""
        raise NotImplementedError

    def prepare(self) -> None:
        raise NotImplementedError

    def io(self, out: Hashable | tuple[Hashable, Hashable], *arguments: Hashable) -> OpIO:
        """What ``prepared_op`` reads and makes, if ``forward(*arguments)`` returns ``out``; of a step that ``joins``."""
        raise NotImplementedError

    def _fold_epilogue(self, scale: Tensor, bias: Tensor, act: nn.Module | str | None, consumer: PackedLayer | None,
                       device: torch.device) -> None:
        """Keeps ``epilogue``, and its vectors each by its name, for what follows a convolution."""
        width = scale.numel()
        kind, gamma, slope, zeta = act_vectors(act, width)
        threshold = None if consumer is None else sign_threshold(consumer)
        threshold = None if threshold is None else threshold.expand(width)
        vectors = dict(scale=scale, bias=bias, gamma=gamma, slope=slope, zeta=zeta, threshold=threshold)
        vectors = {name: self._set_constant(name, None if v is None else v.to(device, torch.float32).contiguous())
                   for name, v in vectors.items()}
        self.epilogue = Epilogue(**vectors, act=kind, out_groups=getattr(consumer, 'groups', 1))

    def _set_constant(self, name: str, value: Tensor | None) -> Tensor | None:
        old = getattr(self, name, None)
        same = old is not None and value is not None and (old.shape, old.dtype, old.device) == (value.shape, value.dtype,
                                                                                               value.device)
        if same and not old.is_inference():
            old.copy_(value)
            return old
        # A copy: what is a parameter itself would otherwise be written to, and seem to have changed, for ever.
        value = None if value is None else value.detach().clone()
        object.__setattr__(self, name, value)
        return value


class UnownedModules(list):
    """Modules that a step reads but does not own."""


class PackStep(Step):
    """Signs of a stream: ``[N, C, H, W]`` -> words, for the packed ``layer``."""

    def __init__(self, layer: PackedLayer):
        super().__init__()
        self.held = UnownedModules([layer])
        self.copies, self.channel_dim = input_copies(layer), layer.channel_dim
        self.is_conv, self.groups = isinstance(layer, PackedConv2d), getattr(layer, 'groups', 1)
        self.depends = depends_on_input(layer)
        self.joins = self.is_conv and self.copies == 1 and not self.depends

    def layers(self) -> list[nn.Module]:
        return sign_modules(self.held[0])

    def prepare(self) -> None:
        self._set_constant('threshold', sign_threshold(self.held[0]))
        self.prepared_op = (PreparedOp('pack_activations', threshold=self.threshold, groups=self.groups) if self.is_conv
                            else PreparedOp('pack_features', threshold=self.threshold))

    def io(self, out, x):
        return OpIO({'x': x}, (out,))

    def forward(self, x: Tensor) -> Tensor:
        if self.copies > 1:
            x = tile(x, self.copies, self.channel_dim)
        if self.depends:
            x = self.held[0].activation.prepare(x)
        if PreparedOp.direct(x):
            return self.prepared_op(x=x)
        if self.is_conv:
            return bnn_kernels.pack_activations(x, self.threshold, self.groups)
        return bnn_kernels.pack_features(x, self.threshold)


class BlockStep(Step):
    """A packed layer with what follows it: words, shortcut -> words, stream, or ``(words, stream)``.

    Args:
        layer: packed convolution or linear layer, 1-bit.
        tiles: how often a following tile repeats its output.
        norms, act: what follows; ``act`` is a module, the name of a parameterless one, or ``None``.
        consumer: the packed layer that reads the words; ``None`` for no words.
        keep: whether the stream is wanted.
        in_place: the shortcut's memory takes the stream.
    """

    def __init__(self, name: str, layer: PackedLayer, tiles: int, norms: list[nn.Module], has_shortcut: bool,
                 act: nn.Module | str | None, consumer: PackedLayer | None, keep: bool, in_place: bool):
        super().__init__()
        self.name, self.tiles, self.act, self.keep, self.in_place = name, tiles, None, keep, in_place
        self.held = UnownedModules([layer, *norms, *([act] if isinstance(act, nn.Module) else [])])
        self.norms, self.acts = UnownedModules(norms), UnownedModules([act])
        self.consumers = UnownedModules([] if consumer is None else [consumer])
        self.pack, self.has_shortcut = consumer is not None, has_shortcut
        self.is_conv = self.joins = isinstance(layer, PackedConv2d)
        self.wants_flat = not self.is_conv and (any(norms) or channels_first(act))
        self.channels = layer._fan() * getattr(layer, 'groups', 1)
        self.options = {}  # of the public functions
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
        self.by_integers = not (self.keep or self.has_shortcut) and (slope is None or bool((slope >= 0).all()))
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
            self.prepared_op = PreparedOp('binary_block2d', w_words=self.weight, geometry=self.geometry,
                                          epilogue=self.epilogue, pack=self.pack, keep=self.keep,
                                          dtype=self.stream if self.keep else torch.float32)

    def io(self, out, words, shortcut=None):
        if self.by_integers:
            return OpIO({'x_words': words}, (out,))
        made = out if self.pack and self.keep else (out, None) if self.pack else (None, out)
        return OpIO({'x_words': words, 'shortcut': shortcut, 'out': shortcut if self.in_place else None}, made)

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
                packed, stream = call(**inputs)
                return ((packed, stream) if self.pack else stream) if self.keep else packed
        if shortcut is not None:
            if shortcut.shape != (words.shape[0], self.width, *self.geometry.size(words.shape[1:3])):
                raise Broadcast(self.name)
        if self.in_place:
            out = bnn_kernels.binary_block2d_(shortcut, words, self.weight, self.channels, self.epilogue, pack=self.pack,
                                              **self.options)
            return (out, shortcut) if self.pack else shortcut
        packed, stream = bnn_kernels.binary_block2d(words, self.weight, self.channels, self.epilogue, shortcut, pack=self.pack,
                                                    keep=self.keep, dtype=self.stream if self.keep else torch.float32,
                                                    **self.options)
        return ((packed, stream) if self.pack else stream) if self.keep else packed

    def on_features(self, words: Tensor, shortcut: Tensor | None):
        """A linear layer is a 1x1 convolution of an image of one column."""
        lead = words.shape[:-1]
        if self.wants_flat and len(lead) != 1:  # a norm or PReLU has its channels at dimension 1
            raise Broadcast(self.name)
        image = words.reshape(1, -1, 1, words.shape[-1])
        if shortcut is not None:
            if shortcut.shape != (*lead, self.width):
                raise Broadcast(self.name)
            shortcut = shortcut.reshape(1, -1, 1, self.width).permute(0, 3, 1, 2)
        if self.by_integers:
            out = bnn_kernels.binary_conv2d_sign(image, self.weight, self.channels, self.limit, self.flip)
            return out.view(*lead, -1)
        packed, stream = bnn_kernels.binary_block2d(image, self.weight, self.channels, self.epilogue, shortcut,
                                                    pack=self.pack, keep=self.keep,
                                                    dtype=self.stream if self.keep else torch.float32)
        packed = packed.view(*lead, -1) if self.pack else None
        stream = stream.permute(0, 2, 3, 1).reshape(*lead, -1) if self.keep else None
        return ((packed, stream) if self.pack else stream) if self.keep else packed


class DownsampleStep(Step):
    """The real-valued shortcut of a binary ResNet: pooling, 1x1 convolution, norm."""

    joins = True

    def __init__(self, pool: int, conv: nn.Conv2d, norms: list[nn.Module]):
        super().__init__()
        self.pool, self.held, self.norms = pool, UnownedModules([conv, *norms]), UnownedModules(norms)

    def layers(self) -> list[nn.Module]:
        return list(self.held)

    def prepare(self) -> None:
        weight, bias = folded_weight(self.held[0], self.norms)
        self._set_constant('weight', weight.flatten(1).float())
        self._set_constant('bias', bias.float())
        self.prepared_op = PreparedOp('downsample2d', weight=self.weight, bias=self.bias, pool=self.pool)

    def io(self, out, x):
        return OpIO({'x': x}, (out,))

    def forward(self, x: Tensor) -> Tensor:
        if PreparedOp.direct(x):
            return self.prepared_op(x=x)
        return bnn_kernels.downsample2d(x, self.weight, self.bias, self.pool)


class ConvStep(Step):
    """A real convolution with its norm folded in and its non-linearity, in channels-last memory."""

    def __init__(self, conv: nn.Conv2d, norms: list[nn.Module], act: nn.Module | str | None):
        super().__init__()
        self.held, self.norms, self.tail = UnownedModules([conv, *norms]), UnownedModules(norms), Tail(act)
        self.geometry = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def layers(self) -> list[nn.Module]:
        return [*self.held, *self.tail.modules]

    def prepare(self) -> None:
        conv = self.held[0]
        weight, bias = folded_weight(conv, self.norms)
        bias = self.tail.prepare(bias)
        self._set_constant('weight', weight.to(conv.weight.dtype).contiguous(memory_format=torch.channels_last))
        self._set_constant('bias', bias.to(conv.weight.dtype) if bias.any() or conv.bias is not None or self.norms else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(F.conv2d(x, self.weight, self.bias, *self.geometry)).contiguous(memory_format=torch.channels_last)


class AffineStep(Step):
    """A norm that stands alone, and its non-linearity: two passes over the stream instead of four."""

    def __init__(self, norm: nn.Module, act: nn.Module | str | None):
        super().__init__()
        self.held, self.tail = UnownedModules([norm]), Tail(act)

    def layers(self) -> list[nn.Module]:
        return [*self.held, *self.tail.modules]

    def prepare(self) -> None:
        mean = self.held[0].running_mean.double()
        scale, bias = through_norms(torch.ones_like(mean), torch.zeros_like(mean), self.held)
        self._set_constant('scale', scale.float().view(1, -1, 1, 1))
        self._set_constant('bias', self.tail.prepare(bias).float().view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.tail(torch.addcmul(self.bias, x.float(), self.scale))
        return x.to(self.stream).contiguous(memory_format=torch.channels_last)


class Tail:
    """A non-linearity behind an affine, in place where that is possible; a shift before it goes into the affine's bias."""

    def __init__(self, act: nn.Module | str | None):
        self.act, self.modules = act, UnownedModules([act] if isinstance(act, nn.Module) else [])

    def prepare(self, bias: Tensor) -> Tensor:
        self.kind, gamma, slope, zeta = act_vectors(self.act, len(bias))
        self.slope = None if slope is None else slope.to(bias.device)
        self.zeta = None if zeta is None else zeta.view(1, -1, 1, 1)
        return bias if gamma is None else bias - gamma.double()

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == 'prelu':
            x = F.prelu(x, self.slope.to(x.dtype))
            return x if self.zeta is None else x.add_(self.zeta)
        if self.kind == 'relu':
            return x.relu_()
        return x.clamp_(-1, 1) if self.kind == 'hardtanh' else x


class FormatStep(Step):
    """A value in the memory format that ``like`` has, the input of the graph: hosts call ``view`` on what they get."""

    def layers(self) -> list[nn.Module]:
        return []

    def prepare(self) -> None:
        pass

    def forward(self, x, like: Tensor):
        plain = isinstance(x, Tensor) and x.dim() == 4 and not x.is_contiguous()
        if not plain or not x.is_contiguous(memory_format=torch.channels_last):
            return x
        return x if like.dim() == 4 and memory_format(like) is torch.channels_last else x.contiguous()


class CastStep(Step):
    """A stream in 16 bits, as the host knows it."""

    def layers(self) -> list[nn.Module]:
        return []

    def prepare(self) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.host)
