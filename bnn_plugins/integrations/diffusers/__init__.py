"""For diffusers: the quantizer, binary UNets, loading and saving of binary models, losses and averages of their training.

Names are imported when they are asked for, because the quantizer is registered while diffusers itself is being imported. Rules
(which layers stay float) are in :mod:`.rules`, which needs no diffusers.
"""

from importlib import import_module

_MODULES = {
    'BNNQuantizer': 'quantizer', 'BinaryUNet2DModel': 'unet_2d', 'CrossTimestepConnection': 'cross_timestep',
    'export_loader_shim': 'loading', 'from_config': 'loading', 'load_pipeline': 'loading', 'register_block': 'blocks',
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
