"""Which modules of a float model become binary and which stay float, each with a reason that can be printed."""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from ..layers import BinaryLayer
from .roles import role_of

Reason = str | None

STEM_NAMES = {'stem', 'conv_stem', 'patch_embed', 'focus', 'conv_in'}
SHORTCUT_NAMES = {'downsample', 'shortcut', 'conv_shortcut', 'skip', 'residual'}
PREDICTION_NAMES = {
    'retina_cls', 'retina_reg', 'conv_cls', 'conv_reg', 'conv_obj', 'conv_centerness', 'atss_cls', 'atss_reg',
    'atss_centerness', 'gfl_cls', 'gfl_reg', 'rtm_cls', 'rtm_reg', 'rtm_obj', 'rpn_cls', 'rpn_reg', 'fc_cls', 'fc_reg',
    'cls_score', 'bbox_pred',
    'convs_pred', 'multi_level_conv_cls', 'multi_level_conv_reg', 'multi_level_conv_obj', 'cls_branches', 'reg_branches',
    'heatmap_head', 'wh_head', 'offset_head', 'conv_logits', 'fc', 'classifier', 'conv_out',
}
EMBEDDING_NAMES = {
    'time_embed', 'time_embedding', 'time_emb_proj', 'time_proj', 'class_embedding', 'add_embedding', 'label_emb', 'pos_embed',
    'time_text_embed', 'context_embedder', 'x_embedder', 'caption_projection', 'adaln_single', 'norm_out',
}
# Linear layers or 1x1 convolutions around a stack of Transformer blocks, on the real-valued stream.
PROJECTION_NAMES = {'proj_in', 'proj_out', 'proj_out_1', 'proj_out_2'}
# Of deformable attention: where it samples, and how much each sample counts.
SAMPLING_NAMES = {'sampling_offsets', 'attention_weights'}
# They read the weight of their convolution and do not call it.
WEIGHT_READERS = {'FirDownsample2D', 'FirUpsample2D'}
# mmcv's Conv2d and Linear only add a case for empty inputs, which torch has handled itself since 1.5.
TRANSPARENT_MODULES = {'mmcv.cnn.bricks.wrappers'}
ATTENTION_CLASSES = {'SELayer', 'SqueezeExcite', 'SEModule', 'ChannelAttention', 'SplitAttentionConv2d', 'DyReLU'}


@dataclass(frozen=True)
class Candidate:
    """A convolution or linear layer of the float model.

    Attributes:
        name: its dotted name. parents: class names of the modules that contain it, outermost first.
    """

    name: str
    module: nn.Module
    parents: tuple[str, ...]

    @property
    def parts(self) -> list[str]:
        return self.name.split('.')


def reads_image(c: Candidate) -> Reason:
    if isinstance(c.module, nn.Conv2d) and c.module.in_channels <= 4:
        return f'reads the image ({c.module.in_channels} channels)'
    return 'part of the stem' if STEM_NAMES & set(c.parts) else None


def depthwise(c: Candidate) -> Reason:
    if isinstance(c.module, nn.Conv2d) and c.module.groups == c.module.in_channels > 1:
        return f'depthwise: sums of only {c.module.weight[0].numel()} signs'
    return None


def real_shortcut(c: Candidate) -> Reason:
    if isinstance(c.module, nn.Conv2d) and c.module.kernel_size == (1, 1) and SHORTCUT_NAMES & set(c.parts):
        return 'shortcut: carries the real-valued stream'
    return None


def prediction(c: Candidate) -> Reason:
    return 'prediction layer' if PREDICTION_NAMES & set(c.parts) else None


def box_head(c: Candidate) -> Reason:
    return 'fully connected layer of a box head' if 'shared_fcs' in c.parts else None


def embedding(c: Candidate) -> Reason:
    if EMBEDDING_NAMES & set(c.parts):
        return 'embedding or projection of a timestep, a class or a position'
    if any(parent.startswith(('AdaLayerNorm', 'AdaGroupNorm')) for parent in c.parents):
        return 'modulates a norm'
    # Swin's merging stands between the stages: no shortcut goes around it.
    around = PROJECTION_NAMES & set(c.parts) or 'PatchMerging' in c.parents
    return 'projection of the real-valued stream' if around else None


def sampling(c: Candidate) -> Reason:
    return 'positions and weights of samples: numbers, not features' if SAMPLING_NAMES & set(c.parts) else None


def channel_attention(c: Candidate) -> Reason:
    return 'channel attention: its input is a vector of means' if ATTENTION_CLASSES & set(c.parents) else None


def own_forward(c: Candidate) -> Reason:
    """Deformable convolutions, quantized linear layers and the like compute something else with their weight."""
    cls = type(c.module)
    base = nn.Linear if isinstance(c.module, nn.Linear) else nn.Conv2d
    if cls.__name__ == 'NonDynamicallyQuantizableLinear':
        return 'nn.MultiheadAttention uses its weight without calling it'
    if 'weight' not in c.module._parameters:
        return 'its weight is computed (spectral norm, weight norm or another parametrization)'
    readers = WEIGHT_READERS & set(c.parents)
    if readers:
        return f'{readers.pop()} uses its weight without calling it'
    plain = cls.forward is base.forward and getattr(cls, '_conv_forward', None) is getattr(base, '_conv_forward', None)
    return None if plain or cls.__module__ in TRANSPARENT_MODULES else f'{cls.__name__} has a forward of its own'


BUILT_IN: tuple[Callable[[Candidate], Reason], ...] = (
    channel_attention, reads_image, depthwise, real_shortcut, prediction, box_head, embedding, sampling,
)


def candidates(model: nn.Module) -> list[Candidate]:
    """All convolutions and linear layers, in the order of ``named_modules``; not the real parts inside of binary layers."""
    binary = [module for module in model.modules() if isinstance(module, BinaryLayer)]
    inside = {part for layer in binary for part in layer.modules() if part is not layer}
    return [Candidate(name, module, parents) for name, module, parents in with_parents(model)
            if isinstance(module, nn.Conv2d | nn.Linear) and module not in inside]


def with_parents(model: nn.Module) -> Iterator[tuple[str, nn.Module, tuple[str, ...]]]:
    """``named_modules()`` with the class names of the modules around each, outermost first."""
    classes: dict[str, tuple[str, ...]] = {}
    for name, module in list(model.named_modules()):
        parents = classes[name.rpartition('.')[0]] if name else ()
        classes[name] = (*parents, type(module).__name__)
        yield name, module, parents


def decide(candidate: Candidate, rules: dict[str, str], roles: list[str] | None = None) -> tuple[bool, str]:
    """``(binary, reason)`` for one layer: what cannot be converted stays float, then the user's rules, then the built-in, then
    the roles."""
    reason = own_forward(candidate)
    if reason is not None:
        return False, reason
    for pattern, kind in rules.items():
        if fnmatchcase(candidate.name, pattern):
            return kind == 'binary', f'rule {pattern!r}'
    for rule in BUILT_IN:
        reason = rule(candidate)
        if reason is not None:
            return False, reason
    if roles is not None:
        role = role_of(candidate.name, candidate.parents)
        return role in roles, f'role {role}' if role else 'has none of the roles'
    return True, 'default'


def check_rules(rules: dict[str, str], names: list[str]) -> None:
    """Raise ``ValueError`` for a pattern that matches no layer, naming the nearest layer."""
    for pattern in rules:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.0)
            hint = f'; the nearest name is {near[0]!r}' if near else ''
            raise ValueError(f'rules: the pattern {pattern!r} matches no convolution or linear layer{hint}')
