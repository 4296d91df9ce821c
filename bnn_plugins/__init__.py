"""Binary (1-bit) detectors and diffusion models through their config: train, pack into bits, run the bits.

Three verbs: :func:`binarize_` makes a float model binary, :func:`pack_` turns a trained one into bits, :func:`summarize`
counts what it costs. In an OpenMMLab config, ``type='bnn_plugins.X'`` is enough.
"""

from importlib import import_module

from . import zoo
from .analysis import Summary, summarize
from .binarize import (
    after_step_,
    clip_latents_,
    list_estimators,
    list_methods,
    list_probabilities,
    register_estimator,
    register_method,
    register_probability,
    set_progress,
    start_epoch_,
)
from .convert import BinarizationReport, BNNConfig, Candidate, RuleSet, binarize_, list_rules, register_rules, remove_rules
from .deploy import (
    FusionReport,
    RestReport,
    VerificationReport,
    fuse_,
    load_packed_,
    pack_,
    quantize_rest_,
    save_packed,
    unfuse_,
    verify,
    weight_levels,
)
from .integrations.import_hooks import install
from .layers.training import set_training_path, training_report
from .version import __version__

__all__ = [
    'BNNConfig', 'BinarizationReport', 'Candidate', 'FusionReport', 'RestReport', 'RuleSet', 'Summary', 'VerificationReport',
    '__version__', 'after_step_', 'binarize_', 'clip_latents_', 'fuse_', 'list_estimators', 'list_methods',
    'list_probabilities', 'list_rules', 'load_packed_', 'pack_', 'quantize_rest_', 'register_estimator', 'register_method',
    'register_probability', 'register_rules', 'remove_rules', 'save_packed', 'set_progress', 'set_training_path',
    'start_epoch_', 'summarize', 'training_report', 'unfuse_', 'verify', 'weight_levels', 'zoo',
]

install()

# What needs diffusers, mmengine or mmcv, imported when it is asked for.
_LATER = dict.fromkeys(('BinaryUNet2DModel', 'CrossTimestepConnection', 'export_loader_shim', 'from_config', 'register_block'),
                       'bnn_plugins.integrations.diffusers') | {
    'import_checkpoint': 'bnn_plugins.models.importing', 'load': 'bnn_plugins.apps.zoo'}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LATER[name]), name)

