"""The real stem of a network: a convolution of an image, and what lies between it and a binary convolution."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import OpIO, PreparedOp
from bnn_kernels.geometry import Stem2dGeometry

from ....convert.generic_rules import IMAGE_CHANNELS
from ....layers.expand import Tile, tile
from ...packed import PackedConv2d, PackedLayer, has_hooks
from ..fold import LOPSIDED, is_float_conv, pair, sign_modules, symmetric_padding, through_act, through_norms
from ..graph import name_of
from ..match import Match, Matcher, act_text
from ..steps import Step, UnownedModules


@dataclass(eq=False)
class Stem(Match):
    """A real convolution of an image at ``nodes[0]``, and what of its followers is fused with it."""

    conv: nn.Conv2d = None
    pool: nn.MaxPool2d | None = None
    affines: list[nn.Module] = field(default_factory=list)
    act: nn.Module | str | None = None

    packs, reads_stream = True, False

    def step(self, consumer, keep, in_place):
        return StemStep(self.conv, self.pool, self.affines, self.act, consumer)


def match(m: Matcher) -> Iterator[Stem]:
    inputs = {reader.input for reader in m.readers if isinstance(reader.layer, PackedConv2d)}
    for node in m.free() if m.readers else ():
        conv = m.module(node)
        if not is_float_conv(conv) or conv.in_channels > IMAGE_CHANNELS or len(node.args) != 1:
            continue
        stem, reason = Stem([node], ['conv'], node.target, conv=conv), refusal(conv)
        while not reason and extend(m, stem):
            pass
        if not reason and stem.result not in inputs:
            follower = m.next(stem.result)
            reason = (f'{follower.target} stays as it is' if follower is not None and follower.op == 'call_module' else
                      'no binary convolution reads what it makes')
        if reason:
            m.unfused[node.target] = reason
        else:
            yield stem


def extend(m: Matcher, stem: Stem) -> bool:
    """Whether what follows can be the next part of the stem; notes it. Pooling comes first: so do the native networks."""
    reader = m.next(stem.result) or copying(m, stem.result)
    module = None if reader is None else m.module(reader)
    if reader is None or stem.act is not None or (module is not None and has_hooks(module)):
        return False
    if is_plain_pool(module) and stem.pool is None and not stem.affines:
        stem.pool = module
        stem.parts.append('pool')
    elif m.is_plain_norm(reader):
        stem.affines.append(module)
        stem.parts.append('norm')
    elif isinstance(module, Tile) and module.channel_dim == 1:
        stem.affines.append(module)
        stem.parts.append('tile')
    elif name_of(reader) == 'cat':  # a tile that a forward has made
        stem.affines.append(Tile(len(reader.args[0])))
        stem.parts.append('tile')
    elif (act := m.act_of(reader, None)) is not None:
        stem.act = act
        stem.parts.append(act_text(act))
    else:
        return False
    stem.nodes.append(reader)
    return True


def copying(m: Matcher, node: fx.Node) -> fx.Node | None:
    """The only reader of ``node``, where it repeats its channels (:func:`bnn_plugins.layers.expand.tile`)."""
    reader = next(iter(node.users), None)
    copies = len(node.users) == 1 and name_of(reader) == 'cat' and reader.args == ([node] * len(reader.args[0]), 1)
    return reader if copies and reader not in m.taken else None


class StemStep(Step):
    """The real-valued stem of a network: image -> stream, or ``(words, stream)``.

    Args:
        conv: a convolution of few channels.
        pool: what follows it, or ``None``.
        affines: the norms and tiles behind, in order.
        act: their non-linearity: a module, the name of a parameterless one, or ``None``.
        consumer: the packed layer that reads the words; ``None`` for no words.
    """

    joins = owns = streams = True

    def __init__(self, conv: nn.Conv2d, pool: nn.MaxPool2d | None, affines: list[nn.Module], act: nn.Module | str | None,
                 consumer: PackedLayer | None):
        super().__init__()
        self.held = UnownedModules([conv, *affines, *([act] if isinstance(act, nn.Module) else [])])
        self.affines, self.acts = UnownedModules(affines), UnownedModules([act])
        self.consumers = UnownedModules([] if consumer is None else [consumer])
        self.pack, self.keep = consumer is not None, True
        window = (1, 1, 0) if pool is None else (pool.kernel_size, pool.stride, pool.padding)
        window, window_stride, window_padding = map(pair, window)
        self.options = dict(stride=conv.stride, padding=symmetric_padding(conv), window=window, window_stride=window_stride,
                            window_padding=window_padding)

    def layers(self) -> list[nn.Module]:
        return [*self.held, *(m for consumer in self.consumers for m in sign_modules(consumer))]

    def affine(self, sizes: bool = False) -> tuple[Tensor, Tensor]:
        """As ``affine`` of a packed layer, behind the convolution without its bias."""
        conv = self.held[0]
        scale = torch.ones(conv.out_channels, dtype=torch.float64, device=conv.weight.device)
        bias = torch.zeros_like(scale) if conv.bias is None else conv.bias.double()  # pooling keeps it as it is
        scale, bias = through_norms(scale, bias, [], sizes)
        for module in self.affines:
            if isinstance(module, Tile):
                scale, bias = scale.repeat(module.times), bias.repeat(module.times)
            else:
                scale, bias = through_norms(scale, bias, [module], sizes)
        return scale, bias

    def prepare(self) -> None:
        weight = self.held[0].weight
        self._set_constant('weight', weight.float().contiguous())
        self._fold_epilogue(*self.affine(), self.acts[0], self.consumers[0] if self.consumers else None, weight.device)
        geometry = Stem2dGeometry.of(self.weight.shape, **self.options)
        self.prepared_op = PreparedOp('stem2d', weight=self.weight, geometry=geometry, epilogue=self.epilogue,
                                      dtype=self.stream, pack=self.pack)

    def io(self, out, x):
        return OpIO({'x': x}, self.both(out))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if PreparedOp.direct(x):
            words, stream = self.prepared_op(x=x)
        else:
            words, stream = bnn_kernels.stem2d(x, self.weight, self.epilogue, **self.options, dtype=self.stream,
                                               pack=self.pack)
        return self.wanted(words, stream)

    def error_bound(self, x, shortcut, expected):
        weight, where = self.held[0].weight.double().abs(), self.options
        total = F.conv2d(x.double().abs(), weight, None, where['stride'], where['padding'])
        total = F.max_pool2d(total, where['window'], where['window_stride'], where['window_padding'])
        scale, bias = (v.view(-1, 1, 1) for v in self.affine(sizes=True))
        total = through_act(tile(total, len(scale) // total.shape[1], 1) * scale + bias, self.acts[0], 1)
        return total * self.rounding(expected, weight[0].numel())


def refusal(conv: nn.Conv2d) -> str:
    """Why a real convolution of an image cannot begin a fused stem; ''."""
    if has_hooks(conv):
        return 'has forward hooks'
    if conv.groups != 1 or conv.dilation != (1, 1):
        return 'has groups or a dilation'
    if symmetric_padding(conv) is None:
        return LOPSIDED
    if conv.weight.dtype == torch.float64:
        return 'float64: the fused operators compute in float32'
    geometry = Stem2dGeometry.of(conv.weight.shape, conv.stride, symmetric_padding(conv))
    able = bnn_kernels.selection('stem2d', x=conv.weight, weight=conv.weight, geometry=geometry).backend
    return f'no backend but the reference has stem2d on {conv.weight.device}' if able in (None, 'reference') else ''


def is_plain_pool(pool: nn.Module | None) -> bool:
    """Whether ``stem2d`` knows a pooling."""
    return type(pool) is nn.MaxPool2d and pair(pool.dilation) == (1, 1) and not (pool.ceil_mode or pool.return_indices)
