"""``binarize_``: replace the layers of a float model by binary ones, in place."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import BinaryAttention, BinaryConvTranspose2d, BinaryLayer, Expansion, build_act
from ..layers.multihead import SplitMultiheadAttention
from .config import BNNConfig
from .dataflow import NON_NEGATIVE, trace
from .flow import Probe, Trace
from .report import BinarizationReport, LayerRow, weight_count
from .rules import BINARY_FORMS, base_of, candidates, check_rules, decide, form_of, known, probe_of, walk

# Called with each converted model and its config, for libraries whose models carry their config.
CONVERTED: list[Callable[[nn.Module, BNNConfig], None]] = []


def binarize_(model: nn.Module, cfg: BNNConfig | dict | str,
              inputs: Tensor | tuple | dict | None = None) -> BinarizationReport:
    """Make a float model binary, in place: layers are replaced, all other modules and the parameters stay.

    Latent weights are the float weights. An ``nn.MultiheadAttention`` is replaced by one whose projections are layers, so that
    they can become binary. When the method takes signs of activations, ReLUs before binary layers are replaced: the sign of a
    non-negative number is always +1.

    With ``inputs``, or where a rule set knows how to call the model (:attr:`RuleSet.probe`), a copy of it is called once, and
    the data flow decides what must stay real: predictions, positions, gates, modulations and what is computed from a timestep
    alone. The report says how far that got.

    Args:
        model: any module; the convolutions and linear layers inside of it are candidates.
        cfg: a :class:`BNNConfig`, a dict of its fields, or a method's name.
        inputs: what the model is called with, a tensor, a tuple of arguments or a dict of keyword arguments: the first tensor
            is what the network transforms (images ``[N, C, H, W]``, latents), all others are conditions (timesteps ``[N]``, a
            text). Its outputs are taken for predictions. Two images tell more than one.

    Returns:
        which layers became binary or stayed float, with the reason.

    Raises:
        TypeError: for what is no module.
        ValueError: for an unknown key, method or pattern, when ``model`` itself is a bare layer, cannot be called with
            ``inputs``, when nothing in it can become binary, or when it has no attention that ``attention`` could be for.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
        >>> report = binarize_(model, BNNConfig(method='bireal', rules={'0': 'float'}))
        >>> [row.name for row in report.rows if row.binary]
        ['2']
    """
    if not isinstance(cfg, BNNConfig):
        cfg = BNNConfig.from_dict({'method': cfg} if isinstance(cfg, str) else cfg)
    if not isinstance(model, nn.Module):
        raise TypeError(f'binarize_ takes a module, but got a {type(model).__name__}: binarize_ its parts, as pipe.unet')
    report = convert_(model, cfg, inputs)
    for note in CONVERTED:
        note(model, cfg)
    return report


def convert_(model: nn.Module, cfg: BNNConfig, inputs: Tensor | tuple | dict | None = None) -> BinarizationReport:
    """:func:`binarize_` without a note to the library of the model."""
    report = BinarizationReport(replaced=split_attention_(model, cfg))
    found = candidates(model)
    if found and found[0].name == '':
        raise ValueError(f'binarize_ changes the children of a model; for a single {type(model).__name__} build the binary '
                         f'layer itself: bnn_plugins.layers.{BINARY_FORMS[base_of(model) or nn.Linear].__name__}')
    check_rules(cfg.rules, [c.name for c in found])
    for entry in cfg.modules_to_not_convert or ():
        if not any(f'.{entry}.' in f'.{c.name}.' for c in found):
            raise ValueError(f'modules_to_not_convert: no convolution or linear layer is in a module {entry!r}')
    flow = trace(model, probe_of(model) if inputs is None else Probe.of(inputs))
    if inputs is not None and flow.failure:
        raise ValueError(f'this {type(model).__name__} cannot be called with these inputs: {flow.failure}')
    report.traced = flow.said
    replaces, made = cfg.takes_signs and cfg.replacement_act != 'keep', False

    for candidate in found:
        layer: Any = candidate.module
        kind, weights = type(layer).__name__, weight_count(layer)
        if isinstance(layer, BinaryLayer):
            binary, reason = True, 'binary already'
        elif cfg.kept(candidate.name):
            binary, reason = False, f'{cfg.kept(candidate.name)!r} of modules_to_not_convert'
        else:
            binary, reason = decide(candidate, cfg.rules, cfg.roles, flow, replaces)
            if binary:
                layer, note = to_binary(layer, cfg)
                reason += note
                layer.path, made = candidate.name, True
                replace_(model, candidate.module, layer)
        report.rows.append(LayerRow(candidate.name, kind, binary, reason, weights))
    if not report.binary:
        reasons = Counter(row.reason for row in report.rows).most_common(4)
        said = '; '.join(f'{count} layers: {reason}' for reason, count in reasons) or 'it has no convolution or linear layer'
        raise ValueError(f'nothing in this {type(model).__name__} became binary. {said}')
    if replaces and made:
        replace_relus_(model, cfg.replacement_act, report, flow)
    return report


def split_attention_(model: nn.Module, cfg: BNNConfig) -> dict[str, str]:
    """Take each ``nn.MultiheadAttention`` apart, in place; returns what the report says about them."""
    said = {}
    for name, module in list(model.named_modules()):
        if type(module) is nn.MultiheadAttention and name and SplitMultiheadAttention.fits(module):
            core = None
            if cfg.attention is not None:
                core = BinaryAttention(module.embed_dim, module.num_heads, cfg.method, cfg.attention)
                core.to(next(module.parameters()))
            new = SplitMultiheadAttention(module, core)
            replace_(model, module, new)
            scores = 'real' if core is None else 'binary'
            said[name] = f'{type(module).__name__} -> {type(new).__name__}: projections are layers, scores {scores}'
    if cfg.attention is not None and not said:
        raise ValueError(f'attention={cfg.attention!r}: this {type(model).__name__} has no nn.MultiheadAttention whose scores '
                         'could become binary: leave it out')
    return said


def to_binary(layer: Any, cfg: BNNConfig, device: torch.device | str | None = None) -> tuple[Any, str]:
    """The binary layer of the same outer shape, with the same parameters (as latents), mode and dtype; its own thresholds and
    scales are on ``device``, by default that of the layer.

    An expanded layer has as many weights in another shape: new parameters with the same numbers. Also returns what the report
    says about the expansion, ``''`` without one.
    """
    expand = cfg.layer_expand
    note = '' if expand is None else obstacle(layer, expand)
    form = form_of(layer)
    make: Any = form
    options = dict(method=cfg.method, bias=layer.bias is not None, device=device or layer.weight.device,
                   dtype=layer.weight.dtype)
    if issubclass(form, nn.Linear):
        new = make(layer.in_features, layer.out_features, expand=None if note else expand, **options)
    else:
        window = {key: getattr(layer, key) for key in ('kernel_size', 'stride', 'padding', 'dilation', 'groups')}
        own = dict(output_padding=layer.output_padding) if issubclass(form, BinaryConvTranspose2d) else dict(
            pad_value=cfg.pad_value, expand=None if note else expand)
        new = make(layer.in_channels, layer.out_channels, **window, **own, **options)
    weight = layer.weight
    if new.expand is not None:
        weight = nn.Parameter(weight.detach().reshape(new.weight.shape), weight.requires_grad)
    for name in getattr(form, 'same_attributes', ()):
        setattr(new, name, getattr(layer, name))
    new._buffers.update({name: value for name, value in layer._buffers.items() if name in new._buffers})
    new._parameters.update(weight=weight, bias=layer.bias)  # pyright: ignore[reportArgumentType]  torch calls them Tensor
    return new.train(layer.training), f'; {note or expand.text()}' if expand is not None else ''


def obstacle(layer: Any, expand: Expansion) -> str:
    """Why this layer cannot be expanded, ``''`` where it can."""
    if isinstance(layer, nn.ConvTranspose2d):
        return 'not expanded: a transposed convolution'
    if isinstance(layer, nn.Linear) and expand.groups > 1:
        return 'not expanded: a linear layer has no groups'
    if not isinstance(layer, nn.Linear) and layer.groups > 1:
        return f'not expanded: {layer.groups} groups of its own'
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return f'not expanded: {outputs} outputs are not divisible by {expand.copies}' if outputs % expand.copies else ''


def replace_relus_(model: nn.Module, act: str, report: BinarizationReport, flow: Trace) -> None:
    """Replace each ReLU that makes the input of a binary layer non-negative, or features that ``model`` returns, as far as the
    forward pass of ``flow`` got; of those that it did not call, all but the ones of channel attention."""
    feeding = {relu for row in report.binary if row.name in flow.layers for relu in flow.layers[row.name].relus}
    feeding = flow.returned.union(*feeding)
    found = {c.module: c for c in walk(model) if type(c.module) in NON_NEGATIVE}
    shared: dict[nn.Module, nn.Module] = {}
    for name, old in list(model.named_modules(remove_duplicate=False)):
        owner, _, leaf = name.rpartition('.')
        if old not in found or (owner and getattr(model.get_submodule(owner), leaf) is not old):
            continue
        c = found[old]
        if c.name in feeding or (c.name not in flow.called and not c.inside(*known('channel_attention'))):
            # Device and dtype of the model. Slopes are parameters, which two places must not share: no file could hold both.
            new = shared.get(old) or build_act(act, 1).to(next(model.parameters())).train(old.training)
            setattr(model.get_submodule(owner), leaf, new)
            if old in shared:
                continue
            if not any(True for _ in new.parameters()):
                shared[old] = new
            report.replaced[name] = f'{type(old).__name__} -> {type(new).__name__}: a sign behind it would always be +1'


def replace_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` wherever ``model`` has ``old``: a layer that heads share has several names."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() skips a second name
            if child is old:
                setattr(parent, name, new)
