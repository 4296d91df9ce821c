"""Trained, packed models that travel with the package, each with a card. :func:`bnn_plugins.load` builds them.

A model is ``<name>.safetensors``, the packed file, and ``<name>.json``, its card. Both are written by
``python -m benchmarks.pretrained.run``. ``names()``, ``card(name)`` and ``table()`` need nothing but the standard library.
"""

import hashlib
import json
from difflib import get_close_matches
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The models, in alphabetical order.

    Example:
        >>> 'retinanet_bnn-r18_fpn_digits' in zoo.names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob('*.json'))


def card(name: str) -> dict:
    """What is known about a model: ``task``, ``data`` and its ``data_licence``, ``train`` (the command), ``commit``, ``pack``,
    ``metrics``, ``bytes``, ``sha256``, ``note``.

    Raises:
        KeyError: for a name that the zoo does not have; names the nearest.

    Example:
        >>> zoo.card('retinanet_bnn-r18_fpn_digits')['task']
        'detection'
    """
    if name not in names():
        near = get_close_matches(name, names(), 1)
        raise KeyError(f'the zoo has no model {name!r}' + (f': did you mean {near[0]!r}?' if near else f': it has {names()}'))
    return json.loads((FOLDER / f'{name}.json').read_text())


def path(name: str) -> Path:
    """The packed file of a model, after its SHA-256 was compared with the card's.

    Raises:
        KeyError: for an unknown name. ValueError: when the file is not the one that the card describes.

    Example:
        >>> zoo.path('retinanet_bnn-r18_fpn_digits').suffix
        '.safetensors'
    """
    file = FOLDER / f'{name}.safetensors'
    expected = card(name)['sha256']
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != expected:
        raise ValueError(f'{file.name} of the zoo is missing or not the file of its card (SHA-256 {expected}): install '
                         'bnn_plugins again')
    return file


def table() -> str:
    """One line for each model, in Markdown: task, data, metrics, size."""
    rows = []
    for name in names():
        about = card(name)
        metrics = ', '.join(f'{key} {value:g}' for key, value in about['metrics'].items())
        rows.append(f'| `{name}` | {about["task"]} | {about["data"]} | {metrics} | {about["bytes"] / 1e6:.2f} |')
    return '\n'.join(['| name | task | data | metrics of the packed file | MB |', '|---|---|---|---|---|', *rows])
