"""Classes of a host whose models have binary layers once they are built, as ``binarize_`` makes them."""

import functools
from collections.abc import Iterable

from torch import nn

from bnn_plugins import binarize_

BUILDING: list = []


def make_binary(classes: Iterable[type], method: str) -> None:
    """Change these classes: not models inside of others, nor those that wait for weights."""
    for cls in set(classes):
        if '__init__' in vars(cls):
            binary_from_the_start(cls, method)


def binary_from_the_start(cls: type, method: str) -> None:
    original = cls.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        outermost = not BUILDING
        BUILDING.append(self)
        try:
            original(self, *args, **kwargs)
        finally:
            BUILDING.pop()
        if outermost and has_layers(self) and not any(parameter.is_meta for parameter in self.parameters()):
            binarize_(self, method)

    cls.__init__ = init


def has_layers(model: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
