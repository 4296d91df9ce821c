"""A plugin of pytest for the tests of diffusers: each model that they build is binary."""

import diffusers
from diffusers import ModelMixin
from from_the_start import make_binary


def pytest_configure(config):
    found = [getattr(diffusers, name, None) for name in dir(diffusers)]
    models = (cls for cls in found if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin)
    make_binary(models, 'bireal')
