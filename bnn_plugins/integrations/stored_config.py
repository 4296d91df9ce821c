"""The config of a packed file, which may come from anybody, as a config of mmengine that runs nothing of its own choice.

mmengine's registries import any dotted name and call what they find there (``type='os.system'``), and mmcv evaluates the name
of its non-maximum suppression. A model is built from a packed file alone only if every name in its config is one that the
registries of :data:`SCOPES`, or what this process has registered, hold already.
"""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

import mmengine.registry
from mmengine.config import Config
from mmengine.registry import Registry

from ..binarize import list_estimators, list_methods, list_probabilities
from ..deploy import PackedFile
from ..deploy.file import shortened
from ..deploy.plain_data import to_json

SCOPES = ('mmengine', 'mmdet', 'bnn_plugins')
SECTIONS = ('default_scope', 'model', 'test_dataloader', 'visualizer', 'image_size', 'image_channels')
NAMES = ('type', 'collate_fn')  # keys whose value a registry looks up
# They evaluate one of their arguments as Python.
REFUSED = {'CameraMotionCompensation', 'RFSearchHook'}
# Files that torch.load or mmengine's Config would execute, and whatever comes from a network.
EXECUTABLE = re.compile(r'.*\.(py|pth|pt|pkl|pickle|ckpt|bin|tar)|\w[\w.+-]*://.*', re.DOTALL | re.IGNORECASE)


class StoredConfig(str):
    """The JSON text of the config of ``file``: mmengine carries it as text, and gets it as :func:`stored_config`."""

    def __new__(cls, file: PackedFile):
        text = super().__new__(cls, to_json(file.config))
        text.file = file
        return text


def from_stored(original, _, args, kwargs) -> Config:
    """Stands in for ``Config.fromstring``, which would execute the text."""
    text = args[0] if args else kwargs.get('cfg_str')
    return stored_config(text.file) if isinstance(text, StoredConfig) else original(*args, **kwargs)


def stored_config(file: PackedFile) -> Config:
    """The sections of the config in a packed file that inference needs, checked; weights come from the file alone.

    Raises:
        ValueError: when it has no config, or one that names anything but what the registries hold: dotted names of other
            packages, files that would be executed, addresses.
    """
    if not isinstance(file.config.get('model'), dict):
        raise ValueError(f'{file.path} has no config of a model: give the config, too')
    config = {key: file.config[key] for key in SECTIONS if key in file.config}
    if isinstance(visualizer := config.get('visualizer'), dict):
        config['visualizer'] = {key: visualizer[key] for key in ('type', 'name') if key in visualizer}  # writes nowhere
    config = for_inference(config)
    known = None
    for place, key, value in leaves(config, 'config'):
        if key in ('default_scope', '_scope_') and value not in (None, *SCOPES, *scopes_in_use()):
            refuse(file, place, value, 'names a scope that is not in use')
        if key in NAMES:
            known = known or known_names()
            if not isinstance(value, str) or not allowed(value, known):
                refuse(file, place, value, 'is nothing that the registries hold')
        elif isinstance(value, str) and EXECUTABLE.fullmatch(value):
            refuse(file, place, value, 'is an address, or a file that would be executed')
    return Config(config)


def refuse(file: PackedFile, place: str, value, why: str) -> None:
    found = shortened(json.dumps(value, default=str))
    raise ValueError(f'{file.path} was not built: {shortened(place)}={found} {why}; if you trust the model, give its config '
                     'yourself')


def for_inference(value):
    """Without what loads other weights when a model is built or initialised, and without teachers."""
    if isinstance(value, dict):
        return {key: for_inference(item) for key, item in value.items() if key not in ('init_cfg', 'pretrained', 'distill')}
    return type(value)(map(for_inference, value)) if isinstance(value, list | tuple) else value


def leaves(value, place: str, key=None) -> Iterator[tuple[str, object, object]]:
    """``(place, key, value)`` of everything that is neither dict nor list, and of all values of :data:`NAMES`."""
    if key in NAMES and not isinstance(value, dict):
        yield place, key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, f'{place}.{name}', name)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from leaves(item, f'{place}[{i}]')
    else:
        yield place, key, value


def registries() -> Iterator[Registry]:
    def below(registry: Registry) -> Iterator[Registry]:
        yield registry
        for child in registry.children.values():
            yield from below(child)

    for root in {id(item): item for item in vars(mmengine.registry).values() if isinstance(item, Registry)}.values():
        yield from below(root)


def scopes_in_use() -> set[str]:
    return {registry.scope for registry in registries()}


def known_names() -> set[str]:
    """All that the registries hold, the methods and their like, and the operators that mmcv's layers look up by name."""
    for scope in SCOPES:
        if find_spec(scope):
            import_module(f'{scope}.registry')
    names = {*list_methods(), *list_estimators(), *list_probabilities()}
    for registry in registries():
        if registry.scope in SCOPES:
            registry.import_from_location()
        names.update(registry.module_dict)
    if find_spec('mmcv'):
        names.update(import_module('mmcv.ops').__all__)
    return names - REFUSED


def allowed(name: str, known: set[str]) -> bool:
    """Whether ``name`` is a known one, or one behind a scope in use or a module of it: ``ResNet``, ``mmdet.models.ResNet``."""
    scope, _, last = name.rpartition('.')
    return last in known and (not scope or scope.partition('.')[0] in {*SCOPES, *scopes_in_use()})
