"""The diffusers door: the quantization backend, binary UNets, and what rebuilds binary models. Needs diffusers.

Names are imported when they are asked for: the quantizer is registered while diffusers itself is still being imported.
"""

from importlib import import_module

_MODULES = {
    'BNNQuantizer': 'quantizer', 'BinaryUNet2DModel': 'unet_2d', 'CrossTimestepConnection': 'cross_timestep',
    'export_loader_shim': 'loading', 'from_config': 'loading', 'register_block': 'blocks',
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_MODULES[name]}'), name)
