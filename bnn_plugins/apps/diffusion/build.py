"""Builds what a diffusion config names: classes of diffusers and ours, by ``type``."""

import json
from pathlib import Path

import diffusers

from ...binarize.lookup import unknown
from ...integrations.diffusers.class_pipeline import ClassConditionalPipeline
from ...integrations.diffusers.loading import from_config
from ...integrations.diffusers.sr_pipeline import SuperResolutionPipeline
from ...integrations.diffusers.unet_2d import BinaryUNet2DModel

OWN = {cls.__name__: cls for cls in (BinaryUNet2DModel, ClassConditionalPipeline, SuperResolutionPipeline)}


def find_class(name: str) -> type:
    """A class of ours or of diffusers. Raises ``ValueError`` for an unknown name and names the nearest."""
    if name in OWN:
        return OWN[name]
    if name not in dir(diffusers) or not isinstance(getattr(diffusers, name), type):
        raise ValueError(unknown('type', name, [*OWN, *dir(diffusers)]))
    return getattr(diffusers, name)


def build(spec: dict, **defaults):
    """``dict(type='DDPMScheduler', ...)`` to an object; the keys of ``defaults`` may be overridden."""
    spec = {**defaults, **spec}
    return find_class(spec.pop('type'))(**spec)


def build_model(args):
    """The UNet of a config, of a ``config.json``, or the default of diffusers' example with binary blocks."""
    if args.model_config_name_or_path is not None:
        path = Path(args.model_config_name_or_path)
        path = path / 'config.json' if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f'there is no config at {path}: give a config.json or the folder that has it')
        return from_config(find_class(json.loads(path.read_text())['_class_name']), path)
    down = ['BinaryDownBlock2D'] * 6
    down[4] = 'BinaryAttnDownBlock2D'
    example = dict(type='BinaryUNet2DModel', block_out_channels=(128, 128, 256, 256, 512, 512), down_block_types=tuple(down),
                   up_block_types=tuple(name.replace('Down', 'Up') for name in reversed(down)))
    return build(args.model or example, sample_size=args.resolution)
