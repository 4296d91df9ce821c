"""Real layers in int8, one behind another, with their pooling, norms and non-linearities: eight bits between them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

import bnn_kernels
from bnn_kernels import OpIO, Pool2dGeometry, PreparedOp
from bnn_kernels.epilogue import stream_of
from bnn_kernels.geometry import Int8Conv2dGeometry

from ...int8_layers import Int8Conv2d, Int8ConvTranspose2d, Int8Layer, Int8Linear, Int8Pixels2d
from ...packed import PackedLayer, has_hooks
from ..fold import sign_modules, symmetric_padding, through_norms
from ..match import Match, Matcher, act_text
from ..steps import Step, UnownedModules, signs_of
from .pool import pool_geometry

NAMES = {'conv': 'conv', 'conv_transpose': 'transposed conv', 'linear': 'linear'}  # of layers, in the report


@dataclass
class Part:
    """A layer and what follows it."""

    name: str
    layer: Int8Layer
    pool: nn.Module | None = None
    window: Pool2dGeometry | None = None  # of its largest sums, before the norms
    norms: list[nn.Module] = field(default_factory=list)
    act: nn.Module | str | None = None


@dataclass(eq=False)
class Int8(Match):
    chain: list[Part] = field(default_factory=list)

    kind = 'int8'

    @property
    def packs(self) -> bool:
        return not isinstance(self.chain[0].layer, Int8Linear)

    def before(self):
        layers = [part.layer for part in self.chain]
        self.links = [Link(part, after) for part, after in zip(self.chain[:-1], layers[1:], strict=True)]
        first = PixelStep if isinstance(layers[0], Int8Pixels2d) else QuantizeStep
        return [first(self.chain[0]), *self.links]

    def step(self, consumer, keep, in_place):
        last = self.chain[-1]
        if last.window is not None and getattr(consumer, 'groups', 1) != 1:
            consumer = None  # it packs the values itself
        return LastLink(last, self.chain[0].layer, self.links, consumer, keep)


def match(m: Matcher) -> Iterator[Int8]:
    for node in m.free():
        if fits(m, node):
            found = Int8([node], [NAMES[m.module(node)._shape().partition(' ')[0]]], node.target,
                         chain=[Part(node.target, m.module(node))])
            while extend(m, found):
                pass
            yield found


def fits(m: Matcher, node: fx.Node) -> bool:
    layer = m.module(node)
    if not isinstance(layer, Int8Layer) or has_hooks(layer) or len(node.args) != 1 or node.kwargs or m.taken & {node}:
        return False
    return not isinstance(layer, Int8Conv2d) or (layer.padding_mode == 'zeros' and symmetric_padding(layer) is not None)


def extend(m: Matcher, found: Int8) -> bool:
    """Whether what follows is the next part of the chain; notes it."""
    reader = m.next(found.result)
    if reader is None:
        return False
    module, last = m.module(reader), found.chain[-1]
    of_rows = isinstance(last.layer, Int8Linear)
    if fits(m, reader) and isinstance(module, Int8Linear) is of_rows:
        found.chain.append(Part(reader.target, module))
        found.parts.append(f'then {reader.target}')
    elif last.act is not None or (module is not None and has_hooks(module)):
        return False
    elif not of_rows and m.is_plain_norm(reader):
        last.norms.append(module)
        found.parts.append('norm')
    elif (act := m.act_of(reader, None)) is not None and not (of_rows and has_channels(act)):
        last.act = act
        found.parts.append(act_text(act))
    elif isinstance(module, nn.MaxPool2d) and isinstance(last.layer, Int8Conv2d) and not last.norms and last.window is None \
            and can_pool_sums(last.layer):
        last.pool, last.window = module, pool_geometry(m, reader)
        if last.window is None:
            return False
        found.parts.append('pool')
    else:
        return False
    found.nodes.append(reader)
    return True


def has_channels(act: nn.Module | str) -> bool:
    """Whether a non-linearity has parameters of channels, which are at dimension 1."""
    return isinstance(act, nn.Module) and any(True for _ in act.parameters())


def can_pool_sums(layer: Int8Conv2d) -> bool:
    """Whether what pools sums is there for this layer."""
    x, zero = torch.zeros(1, layer.in_channels, 1, 1, dtype=torch.uint8, device=layer.scale.device), layer.input_zero
    geometry = Int8Conv2dGeometry.of(layer.weight_int8.shape, padding=layer.kernel_size, groups=layer.groups)
    epilogue = bnn_kernels.Epilogue(layer.scale, layer.bias)
    return bnn_kernels.selection('int8_pooled2d', x=x, x_zero=zero, weight=layer.weight_int8, geometry=geometry,
                                 window=Pool2dGeometry('max'), epilogue=epilogue, out_scale=None, out_zero=None,
                                 dtype=torch.float32, pack=False).backend not in (None, 'reference')


class QuantizeStep(Step):
    """Values -> eight bits, for a layer; and for others that store their input in the same way."""

    joins = True

    def __init__(self, part: Part):
        super().__init__()
        self.label, self.held = f'bytes of {part.name}', UnownedModules([part.layer])
        self.is_conv = not isinstance(part.layer, Int8Linear)

    @property
    def key(self) -> tuple:
        layer = self.held[0]
        return float(layer.input_scale), int(layer.input_zero)

    def layers(self) -> list[nn.Module]:
        return list(self.held)

    def prepare(self) -> None:
        layer = self.held[0]
        self.prepared_op = PreparedOp('quantize', scale=layer.input_scale, zero_point=layer.input_zero)

    def io(self, out, x):
        return OpIO({'x': x}, (out,))

    def forward(self, x: Tensor) -> Tensor:
        layer = self.held[0]
        return self.prepared_op(x=x) if PreparedOp.direct(x) else bnn_kernels.quantize(x, layer.input_scale, layer.input_zero)


class PixelStep(Step):
    """An image, normalised or in uint8 -> whole pixels."""

    def __init__(self, part: Part):
        super().__init__()
        self.label, self.held = f'pixels of {part.name}', UnownedModules([part.layer])

    @property
    def key(self) -> tuple:
        layer = self.held[0]
        return tuple(layer.mean.tolist()), tuple(layer.std.tolist())

    def layers(self) -> list[nn.Module]:
        return list(self.held)

    def forward(self, x: Tensor) -> Tensor:
        return self.held[0]._quantized(x)


class Link(Step):
    """One layer of a chain with its epilogue: eight bits -> eight bits of the next."""

    joins = True

    def __init__(self, part: Part, after: Int8Layer | None, consumer: PackedLayer | None = None, keep: bool = True):
        super().__init__()
        self.label, self.part, self.held = part.name, part, UnownedModules([part.layer])
        self.after, self.consumers = UnownedModules([after]), UnownedModules([] if consumer is None else [consumer])
        self.is_conv = self.owns = not isinstance(part.layer, Int8Linear)
        self.pack, self.keep = consumer is not None, keep or consumer is None or part.window is not None

    def layers(self) -> list[nn.Module]:
        part = self.part
        acts, others = [part.act] if isinstance(part.act, nn.Module) else [], [m for m in self.after if m is not None]
        return [part.layer, *part.norms, *acts, *others, *(m for consumer in self.consumers for m in sign_modules(consumer))]

    def prepare(self) -> None:
        layer, after = self.held[0], self.after[0]
        scale, bias = through_norms(layer.scale.double(), layer.bias.double(), self.part.norms)
        consumer = self.consumers[0] if self.consumers else None
        self._fold_epilogue(scale, bias, self.part.act, consumer, layer.scale.device)
        self.weight = layer.weight_int8 if self.is_conv else layer.weight_int8[:, :, None, None]
        self.options = {}
        if self.is_conv:
            self.options = dict(stride=layer.stride, dilation=layer.dilation, groups=layer.groups)
            if isinstance(layer, Int8ConvTranspose2d):
                self.options |= dict(padding=layer.padding, output_padding=layer.output_padding)
            else:
                self.options['padding'] = symmetric_padding(layer)
        self.out = None if after is None else bnn_kernels.Quantization(after.input_scale, after.input_zero)
        self.dtype = self.stream if after is None else after.input_zero.dtype
        out_scale, out_zero = self.out or (None, None)
        fixed = dict(x_zero=layer.input_zero, weight=self.weight, epilogue=self.epilogue, out_scale=out_scale,
                     geometry=Int8Conv2dGeometry.of(self.weight.shape, **self.options), out_zero=out_zero,
                     dtype=self.dtype)
        if self.part.window is None:
            self.prepared_op = PreparedOp('int8_conv2d', shortcut=None, pack=self.pack, keep=self.keep, **fixed)
        else:
            self.prepared_op = PreparedOp('int8_pooled2d', window=self.part.window, pack=self.pack, **fixed)

    def io(self, out, x):
        x = as_image(x) if isinstance(x, Tensor) and not self.is_conv else x
        return OpIO({'x': x}, self.both(out))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.is_conv:
            stream = self.on_image(as_image(x)) if x.numel() else x.new_empty(0, len(self.weight), 1, 1, dtype=self.dtype)
            return stream.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(self.weight))
        return self.on_image(x)

    def on_image(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if PreparedOp.direct(x):
            words, stream = self.prepared_op(x=x)
        elif self.part.window is not None:
            words, stream = self.one_by_one(x)
        else:
            words, stream = self.convolve(x, self.epilogue, dtype=self.dtype, out=self.out, pack=self.pack, keep=self.keep)
        return self.wanted(words, stream)

    def convolve(self, x: Tensor, epilogue: bnn_kernels.Epilogue, **more) -> tuple[Tensor | None, Tensor | None]:
        operator = bnn_kernels.int8_conv_transpose2d if 'output_padding' in self.options else bnn_kernels.int8_conv2d
        return operator(x, self.held[0].input_zero, self.weight, epilogue, **self.options, **more)

    def one_by_one(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """With the pooling by torch, for code that is compiled or traced."""
        scale = torch.ones_like(self.held[0].scale)
        _, sums = self.convolve(x, bnn_kernels.Epilogue(scale, torch.zeros_like(scale)), dtype=torch.float32)
        y = stream_of(self.part.pool(sums), self.epilogue, None, torch.float32 if self.out else self.dtype)
        words = signs_of(self.consumers[0], y) if self.pack else None
        y = bnn_kernels.quantize(y, *self.out) if self.out else y
        return words, y.contiguous(memory_format=torch.channels_last)


class LastLink(Link):
    """The last of a chain: eight bits -> values, or ``(words, values)``; the same integers as the layers one by one.

    Args:
        first: the layer that reads the values. links: those before. consumer: the packed layer that reads the words; ``None``
            for no words. keep: whether the values are wanted, too.
    """

    streams = True

    def __init__(self, part: Part, first: Int8Layer, links: list[Link], consumer: PackedLayer | None, keep: bool):
        super().__init__(part, None, consumer, keep)
        self.first, self.links, self.text = UnownedModules([first]), UnownedModules(links), f'int8, {len(links) + 1} layers'

    def on_values(self, x, shortcut):
        x = self.first[0]._quantized(x)
        for link in self.links:
            x = link(x)
        return super().on_values(x, shortcut)

    def error_bound(self, x, shortcut, expected):
        """What eight bits differ from float32 is no error of the step: it is compared with the reference backend."""
        with bnn_kernels.set_backend('reference'):
            values = LastLink(self.part, self.first[0], self.links, None, True)
            values.stream = self.stream
            values.prepare()
            _, stream = values.on_values(x, shortcut)
        return (stream.double() - expected.double()).abs()


def as_image(rows: Tensor) -> Tensor:
    """``[..., C]`` as ``[1, C, 1, rows]``."""
    return rows.reshape(1, 1, -1, rows.shape[-1]).permute(0, 3, 1, 2)
