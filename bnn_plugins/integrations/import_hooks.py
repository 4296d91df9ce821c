"""What ``import bnn_plugins`` arranges in the hosts, without importing them.

- ``mmcv._ext`` can be imported where mmcv has no compiled operators (:mod:`.mmcv_ext`).
- ``_base_ = 'bnn_plugins::detection/...'`` finds the configs of the installed package.
- diffusers knows ``BNNConfig`` as a ``quantization_config``; BNN_PLUGINS_NO_REGISTER=1 in the environment leaves it alone.
- PEFT refuses to merge an adapter into a binary layer.
- mmengine reads packed ``.safetensors`` wherever it reads a checkpoint: ``Runner``, ``DetInferencer``, ``init_detector``; the
  model is fused then.
"""

import os

import wrapt

from ..deploy.file import comes_from_a_file
from ..layers import Packable
from . import mmcv_ext


def open_doors() -> None:
    """Arrange everything; a second call changes nothing."""
    mmcv_ext.install()
    wrapt.register_post_import_hook(register_packed_files, 'mmengine.runner.checkpoint')
    wrapt.register_post_import_hook(register_configs, 'mmengine.config.utils')
    wrapt.register_post_import_hook(refuse_merging, 'peft.tuners.lora.layer')
    if os.environ.get('BNN_PLUGINS_NO_REGISTER', '0') in ('', '0'):
        wrapt.register_post_import_hook(register_quantizer, 'diffusers.quantizers.auto')
        wrapt.register_post_import_hook(import_models, 'diffusers.pipelines.pipeline_loading_utils')


def register_configs(config_utils) -> None:
    """Add the package to those whose configs ``_base_ = 'package::path'`` may name."""
    config_utils.MODULE2PACKAGE['bnn_plugins'] = 'bnn_plugins'


def register_quantizer(auto) -> None:
    """Add the quantizer to diffusers."""
    from .diffusers.quantizer import register
    register(auto)


def import_models(loading_utils) -> None:
    """diffusers loads a class of ours only from a module that is imported already."""
    from .diffusers import unet_2d  # noqa: F401


def refuse_merging(lora) -> None:
    """An adapter beside a binary layer works; added to its latents it would be lost under the sign."""

    def merge(original, adapter, args, kwargs):
        layer = adapter.get_base_layer()
        if isinstance(layer, Packable):
            raise ValueError(f'an adapter cannot be merged into a {type(layer).__name__}: the sign of the latent weight would '
                             'lose it. Leave it unmerged, beside the layer')
        return original(*args, **kwargs)

    for name in ('Linear', '_ConvNd'):
        wrapt.wrap_function_wrapper(lora, f'{name}.merge', merge)


def register_packed_files(checkpoint) -> None:
    """Add the packed file to the schemes of ``mmengine.runner.checkpoint``."""

    def load_from_packed(filename, map_location=None):
        from .mmengine.pack import load_from_packed
        return load_from_packed(filename, map_location)

    checkpoint.CheckpointLoader.register_scheme(prefixes=r'.*\.safetensors$', loader=load_from_packed, force=True)

    @wrapt.patch_function_wrapper(checkpoint, 'load_state_dict')
    def load_and_fuse(load, _, args, kwargs):
        result = load(*args, **kwargs)
        _, state_dict, *_ = args
        if comes_from_a_file(state_dict) and os.environ.get('BNN_PLUGINS_FUSE', '1') != '0':
            from .mmengine.pack import fuse_loaded
            fuse_loaded(args[0])
        return result
