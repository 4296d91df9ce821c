"""Where ``import mmcv._ext`` finds the stand-in: behind every other finder, so a real module always wins."""

import importlib
import importlib.util
import logging
import sys
from importlib.abc import Loader, MetaPathFinder

MODULE = 'mmcv._ext'


class StandInLoader(Loader):
    """Fills the module ``mmcv._ext`` with the operators of :mod:`bnn_plugins.integrations.mmcv_ext.ops`."""

    def create_module(self, spec):
        return None  # an ordinary module

    def exec_module(self, module):
        from . import ops

        module.__doc__ = ops.__doc__
        module.__dict__.update((name, getattr(ops, name)) for name in ops.__all__)
        module.__getattr__ = ops.unsupported
        logging.getLogger('bnn_plugins').warning(
            'mmcv has no compiled operators: plain torch ones stand in for %s (BNN_PLUGINS_MMCV_EXT=0 turns them off)', MODULE
        )


class StandInFinder(MetaPathFinder):
    """Answers for ``mmcv._ext`` and for nothing else."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != MODULE:
            return None
        return importlib.util.spec_from_loader(fullname, StandInLoader(), origin='torch stand-in of bnn_plugins')


def install() -> None:
    """Append the finder to ``sys.meta_path``; calling it again changes nothing. Imports neither mmcv nor torch."""
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())
        importlib.invalidate_caches()


def active() -> bool:
    """Whether ``mmcv._ext`` is the stand-in, or will be once something imports it. Imports nothing.

    False when mmcv is missing, has its compiled operators, or the stand-in is not installed.
    """
    return isinstance(getattr(_spec(), 'loader', None), StandInLoader)


def _spec():
    """The spec of ``mmcv._ext``. ``importlib.util.find_spec`` would import mmcv, and OpenCV with it, to answer."""
    if MODULE in sys.modules:
        return getattr(sys.modules[MODULE], '__spec__', None)
    try:
        mmcv = importlib.util.find_spec('mmcv')
    except ValueError:  # a module without a spec was put into sys.modules by hand
        return None
    if mmcv is None or mmcv.submodule_search_locations is None:
        return None
    found = (finder.find_spec(MODULE, mmcv.submodule_search_locations) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)
