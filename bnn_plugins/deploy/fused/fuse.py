"""``fuse_``: run the blocks of a packed model as the fused operators of ``bnn_kernels``."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import torch
from torch import nn

from ...layers import BinaryLayer
from ..packed import PackedLayer
from ..rest_layer import RestLayer
from . import events
from .graph import Untraceable, contains
from .plan import Options, Plan
from .region import FusedForward
from .report import FusionReport
from .steps import Step

STREAMS = (None, torch.float32, torch.bfloat16, torch.float16)
# What is traced where forward cannot be: mmdet's dense heads call forward_single for each level of the pyramid.
METHODS = ('forward', 'forward_single')


def fuse_(model: nn.Module, *, stream_dtype: torch.dtype | None = None, exclude: Iterable[str] = ()) -> FusionReport:
    """Run blocks of a packed model as fused operators, in place: words in, words and real-valued stream out.

    Convolution, norm, shortcut, non-linearity and the sign of the next layer become one operator. The module tree, the
    parameters and the state dict stay as they are; only what ``forward`` runs in evaluation mode is replaced, and
    :func:`unfuse_` takes it back.

    A fused model is frozen: its constants are folded once. ``load_state_dict``, ``.to()`` and the assignment of a module,
    parameter or buffer are followed at the next call. Values that are written in place (``weight.mul_(2)``, ``weight.data``)
    are *not*: call ``fuse_`` again. In training mode, where gradients are wanted, and while one of its modules has forward
    hooks, the modules run as they are. What is called in another way than the one that was traced (other options, other kinds
    of arguments) is traced then, or runs as it is and says so once.

    Signs are those of the packed model but where a value lies within rounding of its threshold, because norms are folded: see
    :func:`bnn_plugins.verify`. Results have the types and the memory format of the packed model's.

    Args:
        model: after :func:`bnn_plugins.pack_` or :func:`bnn_plugins.load_packed_`. Fused already, it is fused again.
        stream_dtype: of the real-valued stream between blocks; default the model's. ``torch.bfloat16`` halves the memory
            traffic and rounds the stream after each block; outputs keep the model's dtype.
        exclude: patterns (:mod:`fnmatch`) of packed layers that stay as they are.

    Returns:
        which layers are fused, into what, and which are not, and why.

    Raises:
        ValueError: for a latent model, one without packed layers, or a pattern that matches none. TypeError: for another
            dtype.

    Example:
        >>> convs = [BinaryConv2d(16, 16, 3, padding=1, method='bireal') for _ in range(2)]
        >>> model = pack_(nn.Sequential(convs[0], nn.BatchNorm2d(16), convs[1], nn.BatchNorm2d(16)))
        >>> report = fuse_(model)
        >>> sorted(report.rows)
        ['0', '2']
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if stream_dtype not in STREAMS:
        raise TypeError(f'stream_dtype must be torch.float32, bfloat16 or float16, but got {stream_dtype}')
    if contains(model, BinaryLayer):
        raise ValueError(f'this {type(model).__name__} is latent: pack_ it first, then fuse_ it')
    names = [name for name, module in model.named_modules() if isinstance(module, PackedLayer)]
    if not names:
        raise ValueError(f'this {type(model).__name__} has no packed layer: binarize_ and pack_ it first')
    for pattern in exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f'exclude: the pattern {pattern!r} matches no packed layer')
    unfuse_(model)
    report = FusionReport()
    fuse_region(model, '', Options(stream_dtype, exclude), report)
    found = {name: report.rows.get(name, 'not fused: it is not called by the forward of a module') for name in names}
    report.rows = found
    return report


def unfuse_(model: nn.Module) -> nn.Module:
    """Take :func:`fuse_` back, in place; returns ``model``.

    Example:
        >>> model = pack_(nn.Sequential(BinaryConv2d(16, 16, 3, method='bireal'), nn.BatchNorm2d(16)))
        >>> x = torch.randn(1, 16, 8, 8)
        >>> packed = model(x)
        >>> report = fuse_(model)
        >>> torch.equal(unfuse_(model)(x), packed)
        True
    """
    for module in model.modules():
        events.forget(module)
        for method in METHODS:
            if isinstance(vars(module).get(method), FusedForward):
                delattr(module, method)
    return model


def fused_parts(model: nn.Module) -> Iterator[tuple[str, 'FusedForward']]:
    """The modules that run as fused graphs, by name."""
    for name, module in model.named_modules():
        for method in METHODS:
            if isinstance(vars(module).get(method), FusedForward):
                yield name, vars(module)[method]


def fused_steps(model: nn.Module) -> Iterator[tuple[str, Step]]:
    """The fused steps, in the order in which they run, by the name of the packed layer (or node) that they stand for.

    They are modules: forward hooks on them see words and streams.
    """
    for name, part in fused_parts(model):
        for step in part.steps.values():
            yield f'{name}.{step.label}'.strip('.'), step


def fuse_region(module: nn.Module, name: str, options: Options, report: FusionReport) -> None:
    """Fuse ``module``, or the largest of its parts that can be traced."""
    if not contains(module, (PackedLayer, RestLayer)) or isinstance(module, RestLayer):
        return
    reasons = []
    for method in METHODS if not isinstance(module, PackedLayer) else METHODS[:1]:
        if not hasattr(type(module), method) or isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        part = FusedForward(module, name, method, options)
        try:
            part.build()
        except Untraceable as error:
            reasons.append(f'{method} cannot be traced ({error.why})')
            continue
        plan = part.plan
        if plan.program is not None:
            setattr(module, method, part)
            report.parts[name] = f'{len(plan.steps)} steps' + ('' if method == 'forward' else f' ({method})')
        report.rows.update(plan.rows)
        report.stems.update(plan.stems)
        report.rows.update({layer: f'not fused: {why}' for layer, why in plan.refused.items()})
        for inner in (*plan.opaque, *unseen(module, plan)):
            fuse_region(module.get_submodule(inner), f'{name}.{inner}'.lstrip('.'), options, report)
        return
    if reasons:
        report.parts[name] = '; '.join(reasons) + ': its parts are fused one by one'
    for inner, child in module.named_children():
        fuse_region(child, f'{name}.{inner}'.lstrip('.'), options, report)


def unseen(module: nn.Module, plan: Plan) -> Iterator[str]:
    """Children whose layers the traced method does not call: mmdet's heads are given those of each level as arguments."""
    seen = {id(m) for m in (*plan.called, *(module.get_submodule(name) for name in plan.opaque))}
    for name, child in module.named_children():
        inside = [m for m in child.modules() if isinstance(m, PackedLayer | RestLayer)]
        if inside and not any(id(m) in seen for m in child.modules()):
            yield name
