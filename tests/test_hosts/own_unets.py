"""A plugin of pytest for the tests of diffusers: where they build a ``UNet2DModel``, they get a ``BinaryUNet2DModel``."""

import diffusers

from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel


class UNet2DModel(BinaryUNet2DModel):
    def __new__(cls, **options):
        for key in ('down_block_types', 'up_block_types'):
            options[key] = tuple(name if name.startswith('Binary') else f'Binary{name}' for name in options[key])
        return BinaryUNet2DModel(**options)


diffusers.UNet2DModel = UNet2DModel
