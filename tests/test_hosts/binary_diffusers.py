"""A plugin of pytest for the tests of diffusers: each model that they build has binary layers, as ``binarize_`` makes them."""

import functools

import diffusers
from diffusers import ModelMixin

from bnn_plugins import binarize_

METHOD = 'bireal'


def binary_from_the_start(cls: type) -> None:
    """Make models of ``cls`` binary once they are built; not those inside of others, nor those that wait for weights."""
    original = cls.__init__

    @functools.wraps(original)
    def init(self, *args, **kwargs):
        outermost = not BUILDING
        BUILDING.append(self)
        try:
            original(self, *args, **kwargs)
        finally:
            BUILDING.pop()
        if outermost and not any(parameter.is_meta for parameter in self.parameters()):
            binarize_(self, METHOD)

    cls.__init__ = init


BUILDING: list = []


def pytest_configure(config):
    found = [getattr(diffusers, name, None) for name in dir(diffusers)]
    for cls in {cls for cls in found if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin}:
        if '__init__' in vars(cls):
            binary_from_the_start(cls)
