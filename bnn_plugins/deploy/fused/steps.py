"""What all steps of a fused program share, and those of no pattern: signs of a value, its dtype, its memory format.

A step holds constants folded from the layers that it stands for. Folding (``fold``) is done in float64 and rounded once.
``prepare`` folds again, into the same tensors where it can, so that compiled code sees new values.
"""

from collections.abc import Hashable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import Epilogue, OpIO, PreparedOp

from ...layers.expand import input_copies, tile
from ..packed import PackedConv2d, PackedLayer, memory_format
from .fold import act_vectors, depends_on_input, sign_modules, sign_threshold

KNOWN = (torch.float32, torch.bfloat16, torch.float16)  # dtypes of streams
ROUNDINGS = 16  # of a block, in units in the last place of the largest intermediate result


class Step(nn.Module):
    """Base. Constants are plain attributes: they belong to no state dict, and reading them costs nothing.

    Attributes:
        label: name of the layer that it stands for.
        text: what is fused.
        stream, host: dtype of the real-valued stream between steps, and of the model.
        joins: whether ``prepared_op`` is all that it runs, so that it can be one call with its neighbours.
        pack, keep: whether it returns words, and a stream; with both a tuple of them.
        in_place: whether its stream is written over its shortcut.
        owns: whether its stream is a tensor of its own in channels-last memory, which another step may write over.
        streams: whether its result is in the dtype ``stream``.
        is_conv: whether it makes images; else features, in contiguous memory.
        adds_several: whether ``shortcut`` is a list of all further inputs.
    """

    label = text = ''
    stream = host = torch.float32
    joins = pack = keep = in_place = owns = streams = adds_several = False
    is_conv = True

    def layers(self) -> list[nn.Module]:
        """The modules whose tensors the constants are made of."""
        return []

    def prepare(self) -> None:
        """Fold the constants."""

    def io(self, out: Hashable | tuple[Hashable, Hashable], *arguments: Hashable) -> OpIO:
        """What ``prepared_op`` reads and makes, if ``forward(*arguments)`` returns ``out``; of a step that ``joins``."""
        raise NotImplementedError

    def both(self, out) -> tuple:
        """``(words, stream)`` of what ``forward`` returns, ``None`` for what it does not make."""
        return out if self.pack and self.keep else (out, None) if self.pack else (None, out)

    def wanted(self, words: Tensor | None, stream: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """What ``forward`` returns of both."""
        return (words, stream) if self.pack and self.keep else words if self.pack else stream

    def on_values(self, x: Tensor, shortcut: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """``(words, stream)`` for real-valued inputs, which stay as they are."""
        return self.both(self(x))

    def error_bound(self, x: Tensor, shortcut: Tensor | None, expected: Tensor) -> Tensor:
        """How far the real-valued result may be from ``expected``, elementwise; see :func:`bnn_plugins.verify`."""
        raise NotImplementedError

    def rounding(self, like: Tensor, terms: int = 0) -> float:
        """Relative to the sum of magnitudes: the roundings of a block in the dtype of the stream or of ``like``, and one in
        float32 for each of ``terms`` of a real-valued sum."""
        single = torch.finfo(torch.float32)
        return ROUNDINGS * max(torch.finfo(like.dtype).eps, torch.finfo(self.stream).eps) + terms * single.eps

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
        value = None if value is None else value.detach().clone()  # a parameter itself would be written to
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
        self.joins = self.copies == 1 and not self.depends

    def layers(self) -> list[nn.Module]:
        return sign_modules(self.held[0])

    def prepare(self) -> None:
        self._set_constant('threshold', sign_threshold(self.held[0]))
        self.prepared_op = (PreparedOp('pack_activations', threshold=self.threshold, groups=self.groups) if self.is_conv
                            else PreparedOp('pack_features', threshold=self.threshold))

    def io(self, out, x):
        return OpIO({'x': x}, (out,))

    def compared(self, x: Tensor) -> Tensor:
        """The values whose signs are taken."""
        if self.copies > 1:
            x = tile(x, self.copies, self.channel_dim)
        return self.held[0].activation.prepare(x) if self.depends else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.compared(x)
        if PreparedOp.direct(x):
            return self.prepared_op(x=x)
        if self.is_conv:
            return bnn_kernels.pack_activations(x, self.threshold, self.groups)
        return bnn_kernels.pack_features(x, self.threshold)


def pack_step(layer: PackedLayer) -> PackStep:
    step = PackStep(layer)
    step.prepare()
    return step


def signs_of(layer: PackedLayer, x: Tensor) -> Tensor:
    """The words that ``layer`` reads of ``x``."""
    return pack_step(layer)(x)


class FormatStep(Step):
    """A value in the memory format that ``like`` has, the input of the graph: hosts call ``view`` on what they get."""

    def __init__(self, joins: bool):
        super().__init__()
        self.joins, self.prepared_op = joins, PreparedOp('to_planes')

    def io(self, out, x, like):
        return OpIO({'x': x}, (out,))

    def forward(self, x, like: Tensor):
        plain = isinstance(x, Tensor) and x.dim() == 4 and not x.is_contiguous()
        if not plain or not x.is_contiguous(memory_format=torch.channels_last):
            return x
        if like.dim() == 4 and memory_format(like) is torch.channels_last:
            return x
        return self.prepared_op(x=x) if PreparedOp.direct(x) and x.dtype in KNOWN and x.numel() else x.contiguous()


class CastStep(Step):
    """A stream in 16 bits, as the host knows it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.host)


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
        if self.kind == 'silu':
            return F.silu(x, inplace=True)
        return x.clamp_(-1, 1) if self.kind == 'hardtanh' else x
