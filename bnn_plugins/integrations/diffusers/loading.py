"""What diffusers does not do for binary models: one from its config, our own pipelines from a folder, a folder for others."""

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path

from torch import nn

from ...convert import BNNConfig, binarize_
from ...convert.binarize import convert_

LIBRARIES = ('bnn_plugins', 'diffusers', 'transformers')
SHIM = """# Lets diffusers find the class of this folder: load the pipeline with trust_remote_code=True.
import bnn_plugins
from {library} import {name}
"""


def from_config(cls: type, config, **kwargs):
    """``cls.from_config`` that honours ``quantization_config``, and takes a path, too.

    Args:
        cls: a model class of diffusers (``UNet2DModel``) or of ``bnn_plugins``.
        config: a dict, a model's ``.config``, or the path of a ``config.json`` or of its folder.
        **kwargs: as ``cls.from_config``.

    Returns:
        the latent model, with fresh weights.

    Raises:
        FileNotFoundError: when there is no such file. ValueError: for an unknown key of the quantization config.
    """
    if isinstance(config, str | Path):
        path = Path(config) / 'config.json' if Path(config).is_dir() else Path(config)
        if not path.is_file():
            raise FileNotFoundError(f'there is no config at {path}: give a config.json or the folder that has it')
        config = json.loads(path.read_text())
    model = cls.from_config(config, **kwargs)
    binarize_as(model, dict(config).get('quantization_config'))
    return model


def binarize_as(model: nn.Module, wanted: BNNConfig | dict | None) -> None:
    """Make a new model binary, in place, if that is its ``quantization_config``; not one that waits for its weights, nor one
    of our classes, which have binary layers from the start."""
    wanted = BNNConfig.from_dict(wanted) if isinstance(wanted, dict) and wanted.get('quant_method') == 'bnn' else wanted
    started = getattr(model, 'hf_quantizer', None) is not None or any(p.is_meta for p in model.parameters())
    if isinstance(wanted, BNNConfig) and not started:
        binarize_(model, wanted)


# The classes that are made of a UNet, by the method that does it.
OF_UNETS = {'ControlNetModel': 'from_unet', 'ControlNetUnionModel': 'from_unet', 'SparseControlNetModel': 'from_unet',
            'UNetControlNetXSModel': 'from_unet', 'UNetMotionModel': 'from_unet2d'}
# What a ControlNet has of a UNet.
ENCODER = ('conv_in', 'time_proj', 'time_embedding', 'class_embedding', 'add_embedding', 'down_blocks', 'mid_block')


def binary_from_unet(original: Callable, cls: type, args: tuple, kwargs: dict) -> nn.Module:
    """``cls.from_unet`` of a binary UNet: a ControlNet that is binary where the UNet is, and begins with its latents.

    diffusers itself builds a float one, to which the weights do not fit. With float UNets this is ``original``.

    Raises:
        ValueError: for a packed UNet, which has no latents, and for a class that shares layers with its UNet.
    """
    given = signature(original).bind(*args, **kwargs).arguments
    unet = given['unet']
    quantizer = getattr(unet, 'hf_quantizer', None)
    if quantizer is None or not quantizer.layers:
        return original(*args, **kwargs)
    if quantizer.packed:
        raise ValueError(f'a {cls.__name__} begins with the weights of a UNet, and a packed one has none left: give the '
                         'latent UNet that it was packed from')
    if 'load_weights_from_unet' not in signature(original).parameters:
        raise ValueError(f'a {cls.__name__} is made of a float UNet: make it first, then binarize_ it')
    load = given.pop('load_weights_from_unet', True)
    model = original(**given, load_weights_from_unet=False)
    own = {name for name, _ in model.named_modules()}
    quantizer.layers, layers = [name for name in quantizer.layers if name in own], quantizer.layers
    try:
        convert_(model, quantizer.exact_config(model))
    finally:
        quantizer.layers = layers
    from .quantizer import note_config
    note_config(model, quantizer.quantization_config)
    for name in ENCODER if load else ():
        part, source = getattr(model, name, None), getattr(unet, name, None)
        if part is not None and source is not None:
            part.load_state_dict(source.state_dict(), strict=cls.__name__ != 'SparseControlNetModel')  # it adds motion modules
    return model


def load_pipeline(folder: str | Path):
    """A saved pipeline of a class of diffusers or of ours; ``DiffusionPipeline.from_pretrained`` looks among its own only.

    Args:
        folder: of the pipeline, with ``model_index.json``.

    Returns:
        the pipeline, a ``diffusers.DiffusionPipeline``.

    Raises:
        FileNotFoundError: without ``model_index.json``. ValueError: when it names a module that is none of diffusers',
            transformers' and ours, which diffusers would import.
    """
    from diffusers import DiffusionPipeline, pipelines

    from .class_pipeline import ClassConditionalPipeline
    from .sr_pipeline import SuperResolutionPipeline
    own = {cls.__name__: cls for cls in (ClassConditionalPipeline, SuperResolutionPipeline)}
    index_path = Path(folder) / 'model_index.json'
    if not index_path.is_file():
        raise FileNotFoundError(f'{folder} has no model_index.json: give the folder of a saved pipeline')
    index = json.loads(index_path.read_text())
    for component, entry in index.items():
        library = entry[0] if isinstance(entry, list) and entry else None
        if isinstance(library, str) and library.partition('.')[0] not in LIBRARIES and not hasattr(pipelines, library):
            raise ValueError(f'{index_path} takes {component!r} from {library!r}, which was not imported: only '
                             f'{", ".join(LIBRARIES)} are')
    name = index['_class_name']
    return own.get(name, DiffusionPipeline).from_pretrained(folder)


def export_loader_shim(folder: str | Path, component: str = 'unet') -> Path:
    """Make a saved pipeline loadable in programs that do not import ``bnn_plugins`` (it must be installed).

    diffusers does not import a module because a folder names it. It runs the small Python file that is written here beside the
    weights when the user agrees with ``trust_remote_code=True``.

    Args:
        folder: of the pipeline, with ``model_index.json``.
        component: the binary one.

    Returns:
        the file that was written, ``<folder>/<component>/bnn_loader.py``.

    Raises:
        FileNotFoundError: without ``model_index.json``. KeyError: when the pipeline has no such component.
    """
    index_path = Path(folder) / 'model_index.json'
    if not index_path.is_file():
        raise FileNotFoundError(f'{folder} has no model_index.json: save the pipeline there first')
    index = json.loads(index_path.read_text())
    if component not in index:
        raise KeyError(f'the pipeline in {folder} has no component {component!r}')
    library, name = index[component]
    shim = Path(folder) / component / 'bnn_loader.py'
    shim.write_text(SHIM.format(library=library, name=name))
    index[component] = [shim.stem, name]
    index_path.write_text(json.dumps(index, indent=2) + '\n')
    return shim
