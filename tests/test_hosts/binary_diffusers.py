"""A plugin of pytest for the tests of diffusers: each model that they build is binary."""

from diffusers import ModelMixin, models
from from_the_start import make_binary


def pytest_configure(config):
    found = [getattr(models, name, None) for name in dir(models)]
    classes = (cls for cls in found if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin)
    make_binary(classes, 'bireal')
