"""Maps between convolutions: side by side, sums, pooling, enlargement, groups of channels that become one by their mean."""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import OpIO, Pool2dGeometry, PreparedOp

from ...packed import has_hooks
from ..fold import pair
from ..graph import name_of
from ..match import ADDS, Match, Matcher
from ..steps import KNOWN, Step
from .concat import side_by_side

NEAREST = ('nearest', None)  # modes; None is the default of F.interpolate


@dataclass(eq=False)
class Pool(Match):
    geometry: Pool2dGeometry = None
    source: fx.Node = None
    plain: Callable[..., Tensor] = None  # what torch computes of the source and the shortcut

    reads_stream = False

    @property
    def input(self):
        return self.source

    def step(self, consumer, keep, in_place):
        return PoolStep(self.geometry, self.plain)


def match(m: Matcher) -> Iterator[Match]:
    device = next((t.device for t in (*m.root.parameters(), *m.root.buffers())), torch.device('cpu'))
    example = dict(x=torch.zeros(1, 1, 1, 1, device=device), geometry=Pool2dGeometry('max'), shortcut=None)
    if bnn_kernels.selection('pool2d', **example).backend in (None, 'reference'):
        return
    for node in m.free():
        found = enlarged(m, node) or folded(m, node) or pooled(m, node) or added(m, node) or side_by_side(m, node)
        if found is not None and not m.taken & set(found.nodes):
            yield found


def pooled(m: Matcher, node: fx.Node) -> Pool | None:
    geometry, module = pool_geometry(m, node), m.module(node)
    if geometry is None:
        return None
    args, kwargs = node.args[1:], dict(node.kwargs)
    return Pool([node], label=node.name if module is None else node.target, geometry=geometry, source=node.args[0],
                plain=module or (lambda x: node.target(x, *args, **kwargs)))


def added(m: Matcher, node: fx.Node) -> Pool | None:
    """``a + b`` of two images that no block could take."""
    if node.target not in ADDS[::2] or len(node.args) != 2 or node.kwargs or not all(map(m.is_image, node.args)):
        return None
    return Pool([node], label=node.name, geometry=Pool2dGeometry('mean'), source=node.args[0], shortcut=node.args[1],
                plain=operator.add)


def pool_geometry(m: Matcher, node: fx.Node) -> Pool2dGeometry | None:
    """Of a pooling or an enlargement that ``pool2d`` computes; the map is the first argument."""
    module = m.module(node)
    if not node.args or not isinstance(node.args[0], fx.Node) or (module is not None and has_hooks(module)):
        return None
    if any(isinstance(value, fx.Node) for value in (*node.args[1:], *node.kwargs.values())):
        return None
    if type(module) is nn.MaxPool2d:
        plain = pair(module.dilation) == (1, 1) and not module.return_indices
        return window('max', module.kernel_size, module.stride, module.padding, module.ceil_mode) if plain else None
    if type(module) is nn.AvgPool2d:
        return average(module.kernel_size, module.stride, module.padding, module.ceil_mode, module.count_include_pad,
                       module.divisor_override)
    if type(module) is nn.Upsample:
        return enlargement(module.size, module.scale_factor, module.mode, module.align_corners)
    if node.op == 'call_function' and name_of(node) == 'avg_pool2d':
        return average(*node.args[1:], **node.kwargs)
    if type(module) is nn.AdaptiveAvgPool2d:
        return adaptive(module.output_size)
    if node.target is F.adaptive_avg_pool2d:
        return adaptive(*node.args[1:], **node.kwargs)
    if node.target is F.interpolate:
        return enlargement(*node.args[1:], **node.kwargs)
    return None


def window(kind: str, kernel, stride, padding=0, ceil: bool = False) -> Pool2dGeometry | None:
    kernel, padding = pair(kernel), pair(padding)
    fits = all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
    return Pool2dGeometry(kind, kernel, pair(stride), padding, bool(ceil)) if fits else None


def average(kernel_size, stride=None, padding=0, ceil_mode: bool = False, count_include_pad: bool = True,
            divisor_override: int | None = None) -> Pool2dGeometry | None:
    counts = count_include_pad and pair(padding) != (0, 0)
    return None if counts or divisor_override else window('mean', kernel_size, stride or kernel_size, padding, ceil_mode)


def adaptive(output_size) -> Pool2dGeometry | None:
    size = pair(output_size)
    return None if None in size else Pool2dGeometry('mean', size=size)


def enlargement(size=None, scale_factor=None, mode: str | None = None, align_corners=None, recompute_scale_factor=None,
                antialias: bool = False) -> Pool2dGeometry | None:
    factors = () if scale_factor is None else pair(scale_factor)
    if mode not in NEAREST or align_corners or antialias or any(f < 1 or f != int(f) for f in factors):
        return None
    if factors:
        return Pool2dGeometry('nearest', window=(int(factors[0]), int(factors[1])))
    return Pool2dGeometry('nearest', size=pair(size))


def enlarged(m: Matcher, node: fx.Node) -> Pool | None:
    """``a + F.interpolate(x, size=a.shape[2:])`` at ``node``, as in a feature pyramid."""
    if node.target not in ADDS[::2] or len(node.args) != 2 or node.kwargs:
        return None
    for a, nearest in (node.args, node.args[::-1]):
        if not isinstance(nearest, fx.Node) or nearest.target is not F.interpolate or len(nearest.users) != 1 or a is nearest:
            continue
        size, others = nearest.kwargs.get('size'), {key: v for key, v in nearest.kwargs.items() if key != 'size'}
        if len(nearest.args) != 1 or not isinstance(a, fx.Node) or enlargement((1, 1), **others) is None:
            continue
        if not isinstance(size, fx.Node) or size.target is not operator.getitem or size.args[1] != slice(2, None, None):
            continue
        shape = size.args[0]
        if shape.target is not getattr or shape.args != (a, 'shape') or len(size.users) != 1 or len(shape.users) != 1:
            continue
        return Pool([shape, size, nearest, node], label=node.name, geometry=Pool2dGeometry('nearest'), source=nearest.args[0],
                    shortcut=a, plain=lambda x, a: a + F.interpolate(x, size=a.shape[2:]))
    return None


def folded(m: Matcher, node: fx.Node) -> Pool | None:
    """The mean of groups of channels at ``node``, as :func:`bnn_plugins.layers.expand.mean_over` takes it of
    ``x.unflatten(1, (-1, channels))``."""
    if node.target is not operator.truediv or not isinstance(node.args[1], int) or node.args[1] < 2:
        return None
    total, count, nodes = node.args[0], node.args[1], [node]
    for i in range(count - 1, -1, -1):
        term = total.args[1] if i and isinstance(total, fx.Node) and total.target is operator.add else total
        if not isinstance(term, fx.Node) or term.target != 'select' or term.args[1:] != (1, i) or len(term.users) != 1:
            return None
        nodes[:0] = [term, total] if i else [term]
        groups, total = term.args[0], total.args[0]
        if len(nodes[0].users) != 1 or groups.target != 'unflatten' or len(groups.users) != count:
            return None
    if groups.args[1] != 1 or tuple(groups.args[2][:-1]) != (-1,) or any(len(n.users) != 1 for n in nodes[:-1]):
        return None
    channels = groups.args[2][1]
    return Pool([groups, *nodes], label=node.name, geometry=Pool2dGeometry('mean', fold=count), source=groups.args[0],
                plain=lambda x: x.unflatten(1, (count, channels)).mean(1))


class PoolStep(Step):
    """Map, and what is added -> map."""

    joins = owns = True
    text = 'map'

    def __init__(self, geometry: Pool2dGeometry, plain: Callable[..., Tensor]):
        super().__init__()
        self.geometry, self.held = geometry, (plain,)  # in a tuple: a module here belongs to the model
        self.prepared_op = PreparedOp('pool2d', geometry=geometry)

    def io(self, out, x, shortcut=None):
        return OpIO({'x': x, 'shortcut': shortcut}, (out,))

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        given = [x] if shortcut is None else [x, shortcut]
        known = all(value.dim() == 4 and value.dtype == x.dtype and value.numel() for value in given) and x.dtype in KNOWN
        known = known and (shortcut is None or self.geometry.shape(x.shape, shortcut.shape) == shortcut.shape)
        if known and PreparedOp.direct(x):
            return self.prepared_op(x=x, shortcut=shortcut)
        y = self.held[0](*given)
        return y.contiguous(memory_format=torch.channels_last) if y.dim() == 4 else y

    def on_values(self, x, shortcut):
        return None, self(x, shortcut)

    def error_bound(self, x, shortcut, expected):
        total = self(x.float().abs(), None if shortcut is None else shortcut.float().abs()).double()
        return total * self.rounding(expected, self.geometry.fold * self.geometry.window[0] * self.geometry.window[1])
