"""Checkpoints that authors publish, under the names of the project's networks."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..binarize.lookup import unknown
from ..registry import MODELS
from .released import RELEASES, Release

# Where authors put the state dict, and what wrappers put in front of its names.
WRAPPERS, PREFIX, STUDENT, TEACHER = ('state_dict', 'model'), 'module.', 'student.', 'teacher.'
WORDS = {'norm': 'weight|bias|running_mean|running_var|num_batches_tracked', 'affine': 'weight|bias', 'part': r'\w+'}
COLD = 1e-7  # below this temperature BNext's released convolution takes signs


@dataclass(frozen=True)
class Imported:
    """A published network for :class:`.BinaryClassifier`.

    Attributes:
        network: its name.
        backbone, head: configs.
        state_dict: its numbers.
    """

    network: str
    backbone: dict
    head: dict
    state_dict: dict[str, Tensor]


def import_checkpoint(checkpoint: str | Path, source: str, out: str | Path | None = None) -> Imported:
    """Read a checkpoint of the authors' code; nothing of it is executed.

    Args:
        checkpoint: a file of ``torch.save``: a state dict, or a dict with one; names may begin with ``module.``.
        source: whose it is, a key of :data:`bnn_plugins.models.released.RELEASES` (``'reactnet'``, ``'recu'``, ...); which of
            its networks is found out from the names and shapes.
        out: also write a checkpoint that ``load_from`` of a config, or ``init_cfg=dict(type='Pretrained', checkpoint=out,
            prefix='backbone.')`` of a backbone, loads.

    Raises:
        ValueError: for an unknown source; for a file that is no whole checkpoint or holds other objects than tensors; for a
            name that the network does not have, one that is missing, another shape, and for weights of BNext that its release
            does not take the signs of yet.

    Example:
        >>> from bnn_plugins import import_checkpoint
        >>> import_checkpoint('model_best.pth.tar', 'reactnet', 'reactnet-a.pth').network  # doctest: +SKIP
        'ReActNet-A'
    """
    if source not in RELEASES:
        raise ValueError(unknown('source of checkpoints', source, RELEASES))
    state = published_state(checkpoint)
    strangers = {name: [key for key in state if match(release, key) is None] for name, release in RELEASES[source].items()}
    fewest = min(map(len, strangers.values()))
    refusals = []
    for name, release in RELEASES[source].items():
        if len(strangers[name]) > fewest:
            continue
        problem = f'it has {strangers[name][0]!r}, which that network has not' if fewest else ''
        if not problem:
            backbone, head = dict(release.backbone), dict(num_classes=classes(release, state), **release.head)
            model = MODELS.build(dict(type='bnn_plugins.BinaryClassifier', backbone=dict(backbone), head=dict(head)))
            result, problem = translated(release, state, model.state_dict())
        if not problem:
            if out is not None:
                torch.save(dict(meta=dict(network=name, backbone=backbone, head=head), state_dict=result), out)
            return Imported(name, backbone, head, result)
        refusals.append(f'{name}: {problem}')
    others = [other for other in RELEASES if other != source
              and any(all(match(release, key) for key in state) for release in RELEASES[other].values())]
    hint = f' (its names are those of {" and ".join(others)})' if fewest and others else ''
    raise ValueError(f'{checkpoint} is not a network of {source}{hint}; {"; ".join(refusals)}')


def published_state(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file, without what wrappers put in front of its names, and without a teacher."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the arguments of a training script
            content = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged pickle or archive raises anything
        code = re.search(r'GLOBAL ([\w.]+)', str(error))
        why = f'holds {code[1]}, which is no tensor and is not executed' if code else 'is cut off, or no checkpoint of PyTorch'
        raise ValueError(f'{path} {why}') from None
    if isinstance(content, Mapping):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f'{path} has no state dict of tensors, by itself or as {" or ".join(map(repr, WRAPPERS))}')
    state = dict(content)
    for prefix in (PREFIX, STUDENT, PREFIX):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if not key.startswith(TEACHER)}
    return state


@cache
def pattern(theirs: str) -> re.Pattern:
    parts = re.split(r'\{(\w+)\}', theirs)
    return re.compile(''.join(f'(?P<{part}>{WORDS.get(part, chr(92) + "d+")})' if odd else re.escape(part)
                              for part, odd in zip(parts, [False, True] * len(parts), strict=False)))


def match(release: Release, key: str) -> tuple[list[str], str] | None:
    """The project's names for a name of the release, and what happens to the tensor; ``None`` for one that it has not."""
    for theirs, ours, how in release.rules:
        if found := pattern(theirs).fullmatch(key):
            return [name.format(**release.names(found.groupdict())) for name in ours], how
    return None


def classes(release: Release, state: dict[str, Tensor]) -> int:
    return next((len(value) for key, value in state.items() if match(release, key)[0] == ['head.fc.bias']), 1000)


def translated(release: Release, state: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state dict for a network whose own one is ``own``, and what is wrong; ''."""
    result = {}
    for key, value in state.items():
        names, how = match(release, key)
        if how == 'cold' and not bool((value < COLD).all()):
            return result, (f'{key} is {value.max():g}: the release would compute with real weights, not with their signs')
        for name in names:
            optional, name = name.endswith('?'), name.removesuffix('?')
            if name not in own:
                if optional:
                    continue
                return result, f'it has {key!r}, which that network has not'
            shaped = fitted(value, own[name].shape, how)
            if shaped is None:
                return result, f'{key!r} has the shape {tuple(value.shape)} where {tuple(own[name].shape)} is needed'
            result[name] = shaped
    for name, value in own.items():
        if name not in result:
            if not name.endswith((*release.kept, 'num_batches_tracked')):
                return result, f'it has nothing for {name!r}'
            result[name] = value
    if release.stem is not None:
        conv, norm = release.stem
        signs = torch.where(result[f'{norm}.weight'] < 0, -1, 1)
        result[f'{conv}.weight'] = result[f'{conv}.weight'] * signs.view(-1, 1, 1, 1)
        for part in ('weight', 'running_mean'):
            result[f'{norm}.{part}'] = result[f'{norm}.{part}'] * signs
    return result, ''


def fitted(value: Tensor, shape: torch.Size, how: str) -> Tensor | None:
    """What happens to a tensor, see :mod:`.released`; ``None`` where it does not fit."""
    if how == 'tokens' and value.ndim == 3:
        value = value.mT.reshape(1, value.shape[2], -1)
        return value.view(shape) if value.shape[:2] == shape[:2] and value.shape[2] == shape[2] * shape[3] else None
    if how == 'repeat' and value.ndim == 1 and shape.numel() % len(value) == 0:
        value = value.repeat(shape.numel() // len(value))
    if value.numel() != shape.numel() or (how in ('same', 'repeat') and value.shape != shape):
        return None
    value = value.reshape(shape)
    return {'negate': lambda: -value, 'unit': lambda: value.clamp(0, 1), 'fiftieth': lambda: 0.02 * value.double()}.get(
        how, lambda: value)()
