"""Real convolutions in int8, one behind another, with their norms and non-linearities: between them only eight bits."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

import bnn_kernels
from bnn_kernels import PreparedOp
from bnn_kernels.geometry import Int8Conv2dGeometry

from ...int8_layers import Int8Conv2d
from ...packed import PackedLayer, has_hooks
from ..fold import sign_modules, symmetric_padding, through_norms
from ..match import Match, Matcher, act_text
from ..steps import Step, UnownedModules


@dataclass
class Part:
    """A convolution and what follows it."""

    layer: Int8Conv2d
    norms: list[nn.Module] = field(default_factory=list)
    act: nn.Module | str | None = None


@dataclass(eq=False)
class Int8(Match):
    chain: list[Part] = field(default_factory=list)

    packs, kind = True, 'int8'

    def step(self, consumer, keep, in_place):
        return Int8Step(self.chain, consumer, keep)


def match(m: Matcher) -> Iterator[Int8]:
    for node in m.free():
        if fits(m, node):
            found = Int8([node], ['conv'], node.target, chain=[Part(m.module(node))])
            while extend(m, found):
                pass
            yield found


def fits(m: Matcher, node: fx.Node) -> bool:
    layer = m.module(node)
    return isinstance(layer, Int8Conv2d) and not has_hooks(layer) and len(node.args) == 1 and not node.kwargs \
        and layer.padding_mode == 'zeros' and symmetric_padding(layer) is not None and not m.taken & {node}


def extend(m: Matcher, found: Int8) -> bool:
    """Whether what follows is the next part of the chain; notes it."""
    reader = m.next(found.result)
    if reader is None:
        return False
    module, last = m.module(reader), found.chain[-1]
    if fits(m, reader):
        found.chain.append(Part(module))
        found.parts.append(f'then {reader.target}')
    elif last.act is not None or (module is not None and has_hooks(module)):
        return False
    elif m.is_plain_norm(reader):
        last.norms.append(module)
        found.parts.append('norm')
    elif (act := m.act_of(reader, None)) is not None:
        last.act = act
        found.parts.append(act_text(act))
    else:
        return False
    found.nodes.append(reader)
    return True


class Int8Step(Step):
    """Values -> values, or ``(words, values)``; the same integers as the layers one by one.

    Args:
        chain: the layers. consumer: the packed layer that reads the words of the last; ``None`` for no words.
        keep: whether the values are wanted, too.
    """

    owns = True

    def __init__(self, chain: list[Part], consumer: PackedLayer | None, keep: bool):
        super().__init__()
        self.chain, self.consumers = chain, UnownedModules([] if consumer is None else [consumer])
        self.pack, self.keep = consumer is not None, keep or consumer is None
        self.links = [Link(part) for part in chain]
        self.text = f'int8, {len(chain)} layers'

    def layers(self) -> list[nn.Module]:
        acts = [part.act for part in self.chain if isinstance(part.act, nn.Module)]
        return [*(module for part in self.chain for module in (part.layer, *part.norms)), *acts,
                *(module for consumer in self.consumers for module in sign_modules(consumer))]

    def prepare(self) -> None:
        first, *others = [part.layer for part in self.chain]
        self.quantize = PreparedOp('quantize', scale=first.input_scale, zero_point=first.input_zero)
        for link, after in zip(self.links, [*others, None], strict=True):
            link.prepare(after, self.consumers[0] if self.consumers and after is None else None)
        self.scale = self.links[-1].scale

    def run(self, x: Tensor, pack: bool, keep: bool) -> tuple[Tensor | None, Tensor | None]:
        direct = PreparedOp.direct(x)
        first = self.chain[0].layer
        dtype, q = x.dtype, self.quantize(x=x) if direct else bnn_kernels.quantize(x, first.input_scale, first.input_zero)
        for link in self.links[:-1]:
            _, q = link(q, torch.uint8, False, True, direct)
        return self.links[-1](q, dtype, pack, keep, direct)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        words, stream = self.run(x, self.pack, self.keep)
        return (words, stream) if self.pack and self.keep else words if self.pack else stream

    def error_bound(self, x, shortcut, expected):
        """What eight bits differ from float32 is no error of the step: it is compared with the reference backend."""
        with bnn_kernels.set_backend('reference'):
            _, stream = self.run(x, False, True)
        return (stream.double() - expected.double()).abs()


class Link(Step):
    """One convolution of a chain with its epilogue."""

    def __init__(self, part: Part):
        super().__init__()
        self.held, self.part = UnownedModules([part.layer]), part

    def prepare(self, after: Int8Conv2d | None = None, consumer: PackedLayer | None = None) -> None:
        layer = self.held[0]
        self.after = UnownedModules([] if after is None else [after])
        scale, bias = through_norms(layer.scale.double(), layer.bias.double(), self.part.norms)
        self._fold_epilogue(scale, bias, self.part.act, consumer, layer.scale.device)
        self.options = dict(stride=layer.stride, padding=symmetric_padding(layer), dilation=layer.dilation,
                            groups=layer.groups)
        self.geometry = Int8Conv2dGeometry.of(layer.weight_int8.shape, **self.options)
        self.ops: dict[tuple, PreparedOp] = {}

    def forward(self, q: Tensor, dtype: torch.dtype, pack: bool, keep: bool, direct: bool) -> tuple[Tensor, Tensor]:
        layer, after = self.held[0], self.after[0] if self.after else None
        out = None if after is None else bnn_kernels.Quantization(after.input_scale, after.input_zero)
        if not direct:
            return bnn_kernels.int8_conv2d(q, layer.input_zero, layer.weight_int8, self.epilogue, **self.options, dtype=dtype,
                                           out=out, pack=pack, keep=keep)
        key = dtype, pack, keep
        if key not in self.ops:
            out_scale, out_zero = out or (None, None)
            self.ops[key] = PreparedOp(
                'int8_conv2d', x_zero=layer.input_zero, weight=layer.weight_int8, geometry=self.geometry,
                epilogue=self.epilogue, shortcut=None, out_scale=out_scale, out_zero=out_zero, dtype=dtype, pack=pack,
                keep=keep)
        return self.ops[key](x=q)
