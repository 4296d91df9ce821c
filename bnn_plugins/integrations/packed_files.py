"""mmengine reads packed files wherever it reads a checkpoint: ``Runner``, ``init_detector``, ``DetInferencer``, ...

All of them take a checkpoint from ``CheckpointLoader`` and hand it to ``_load_checkpoint_to_model``, which only warns of what
does not fit. A packed file is loaded by :func:`bnn_plugins.load_packed_` there, which raises, and fused.
"""

import inspect
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import wrapt
from mmengine.logging import print_log
from torch import nn

from ..deploy import PackedFile, PackedLayer, PackedModule, fuse_, is_packed_file, load_packed_, read_packed
from .stored_config import StoredConfig, from_stored

# A comment makes the pattern a key of its own, sorted before the same pattern of somebody else.
SCHEME = r'.*\.safetensors$(?#bnn_plugins)'
LOAD = '_load_checkpoint_to_model'
KEY = 'packed_file'


class PackedMeta(dict):
    """The ``meta`` of a packed file, which says what is wrong where ``Runner.resume`` asks for the state of a training."""

    def __missing__(self, key: str):
        raise ValueError(f'a packed file has no {key!r}, for it holds a model without its training: set load_from, not resume')


def register(checkpoint: ModuleType) -> None:
    """Add the packed file to ``mmengine.runner.checkpoint``, and its config, which is data, to ``Config.fromstring``."""
    wrapt.wrap_function_wrapper('mmengine.config', 'Config.fromstring', from_stored)
    register_scheme(checkpoint.CheckpointLoader)
    original = getattr(checkpoint, LOAD)
    parameters = inspect.signature(original)

    @wrapt.decorator
    def load_packed(load, _, args, kwargs):
        given = parameters.bind(*args, **kwargs)
        given.apply_defaults()
        model, content, keys = (given.arguments[name] for name in ('model', 'checkpoint', 'revise_keys'))
        if KEY not in content:
            return load(*args, **kwargs)
        load_into_(model, replace(content[KEY], tensors=content['state_dict']), keys)
        return content

    wrapped = load_packed(original)
    for module in list(sys.modules.values()):  # those that were imported sooner have the function under its name
        if getattr(module, '__dict__', {}).get(LOAD) is original:
            setattr(module, LOAD, wrapped)


def register_scheme(loader: type) -> None:
    """Add a scheme to mmengine's ``CheckpointLoader``. It hands on to the scheme that was taken without it what is no packed
    file."""
    def load_from_packed(filename: str, map_location=None) -> dict:
        if Path(filename).is_file() and is_packed_file(filename):
            return as_checkpoint(read_packed(filename))
        return next(load for prefix, load in loader._schemes.items()
                    if prefix != SCHEME and re.match(prefix, filename))(filename, map_location)

    loader.register_scheme(SCHEME, load_from_packed, force=True)


def as_checkpoint(file: PackedFile) -> dict:
    """A packed file as the checkpoint that mmengine's readers expect.

    The config in the message hub lets ``DetInferencer(weights=...)`` work without a config, see
    :func:`.stored_config.stored_config`.
    """
    return {'state_dict': file.tensors, 'meta': PackedMeta(file.meta),
            'message_hub': {'runtime_info': {'cfg': StoredConfig(file)}}, KEY: file}


def load_into_(model: nn.Module, file: PackedFile, revise_keys: list[tuple[str, str]]) -> None:
    """:func:`bnn_plugins.load_packed_` in place, then fused unless BNN_PLUGINS_FUSE=0; training mode stays as it is.

    Args:
        revise_keys: mmengine's ``(pattern, replacement)`` of names.

    Raises:
        ValueError: see :func:`bnn_plugins.load_packed_`, and for a model that is a binary layer itself.
    """
    def rename(name: str) -> str:
        for pattern, replacement in revise_keys:
            name = re.sub(pattern, replacement, name)
        return name

    modes = {module: module.training for module in model.modules()}
    if load_packed_(model, file.renamed(rename)) is not model:
        raise ValueError(f'this {type(model).__name__} is a layer itself, which mmengine cannot replace by a packed one: use '
                         'bnn_plugins.load_packed_')
    if os.environ.get('BNN_PLUGINS_FUSE', '1') != '0' and any(isinstance(module, PackedLayer) for module in model.modules()):
        print_log(f'{fuse_(model).summary()} (bnn_plugins.unfuse_(model) takes it back, BNN_PLUGINS_FUSE=0 turns it off)',
                  logger='current')
    for module in model.modules():
        module.training = modes.get(module, False)
    for module in model.modules():
        if isinstance(module, PackedModule):
            module.eval()
