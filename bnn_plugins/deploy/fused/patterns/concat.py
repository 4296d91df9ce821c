"""Maps side by side, the non-linearity behind them, and the signs of all their channels.

A non-linearity goes into the blocks that make the maps, each with its channels of it: so nothing but the copy is left, and no
more than the signs where only binary layers read the result.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from bnn_kernels import OpIO, PreparedOp
from bnn_kernels.checks import MOST_MAPS
from bnn_kernels.map_ops import named

from ...packed import PackedConv2d, PackedLayer, has_hooks
from ..fold import ActPart, sign_modules, sign_threshold
from ..graph import name_of
from ..match import Match, Matcher, act_text
from ..steps import KNOWN, Step, UnownedModules, signs_of
from .block import Block


@dataclass(eq=False)
class Concat(Match):
    maps: list[fx.Node] = field(default_factory=list)

    packs, rounds = True, False

    @property
    def input(self):
        return self.maps[0]

    @property
    def others(self):
        return self.maps[1:]

    def step(self, consumer, keep, in_place):
        return ConcatStep(consumer, keep)


def side_by_side(m: Matcher, node: fx.Node) -> Concat | None:
    """``torch.cat`` of images along their channels, and what is fused behind it."""
    if name_of(node) not in ('cat', 'concat', 'concatenate') or node.op != 'call_function' or not node.args:
        return None
    maps, along = node.args[0], node.kwargs.get('dim', node.args[1] if len(node.args) > 1 else 0)
    if along != 1 or set(node.kwargs) - {'dim'} or not isinstance(maps, list | tuple) or not 1 < len(maps) <= MOST_MAPS:
        return None
    if not all(isinstance(source, fx.Node) for source in maps) or not any(map(m.is_image, maps)):
        return None
    found, reader = Concat([node], label=node.name, maps=list(maps)), m.next(node)
    if reader is not None and goes_into_blocks(m, reader, maps):
        found.nodes.append(reader)
    return found


def goes_into_blocks(m: Matcher, reader: fx.Node, maps: list[fx.Node]) -> bool:
    """Whether ``reader`` is a non-linearity that the blocks which make the maps take; notes it there."""
    module, act = m.module(reader), m.act_of(reader, None)
    blocks = [m.matches.get(source) for source in maps]
    if act is None or (module is not None and has_hooks(module)) or len(set(maps)) < len(maps):
        return False
    if not all(isinstance(block, Block) and isinstance(block.layer, PackedConv2d) and block.act is None
               and len(block.result.users) == 1 for block in blocks):
        return False
    ends = torch.tensor([block.width for block in blocks]).cumsum(0).tolist()
    for block, first, last in zip(blocks, [0, *ends], ends, strict=False):
        channels = slice(first, last)
        block.act = ActPart(act, ends[-1], channels) if isinstance(act, nn.Module) else act
        block.parts.append(act_text(act))
        block.expected = reader, channels
    return True


class ConcatStep(Step):
    """Maps -> words, stream, or ``(words, stream)``.

    Args:
        consumer: the packed layer that reads the words; ``None`` for no words. keep: whether the stream is wanted.
    """

    joins = streams = owns = True
    text = 'maps side by side'

    def __init__(self, consumer: PackedLayer | None, keep: bool):
        super().__init__()
        self.consumers = UnownedModules([] if consumer is None else [consumer])
        self.pack, self.keep = consumer is not None, keep

    def layers(self) -> list[nn.Module]:
        return [module for consumer in self.consumers for module in sign_modules(consumer)]

    def prepare(self) -> None:
        groups, threshold = 1, None
        for consumer in self.consumers:
            groups, threshold = consumer.groups, sign_threshold(consumer)
            threshold = None if threshold is None else threshold.expand(consumer._fan() * groups).contiguous()
        self._set_constant('threshold', threshold)
        self.prepared_op = PreparedOp('concat2d', threshold=self.threshold, groups=groups, pack=self.pack, keep=self.keep)

    def io(self, out, *maps):
        return OpIO(named(maps), self.both(out))

    def forward(self, *maps: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = maps[0]
        alike = all(x.dim() == 4 and x.dtype == self.stream and x.numel() and x.shape[2:] == first.shape[2:] for x in maps)
        if alike and self.stream in KNOWN and PreparedOp.direct(first):
            return self.wanted(*self.prepared_op(**named(maps)))
        stream = torch.cat(maps, 1).to(self.stream)
        stream = stream.contiguous(memory_format=torch.channels_last) if stream.dim() == 4 else stream
        return self.wanted(signs_of(self.consumers[0], stream) if self.pack else None, stream)
