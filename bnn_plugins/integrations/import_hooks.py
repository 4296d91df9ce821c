"""What ``import bnn_plugins`` changes in other packages: the rows of :data:`HOOKS`, and nothing else.

No other package is imported for it: the function of a row is called when the module of the row is imported by somebody. Every
row has an environment variable; ``0`` leaves that package as it is. ``print(bnn_plugins.integrations.import_hooks.table())``
shows the rows.
"""

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import packages_distributions, version
from inspect import signature
from operator import attrgetter
from types import ModuleType

import wrapt

from .. import zoo
from ..convert import register_rules
from ..deploy import PackedModule, read_packed
from . import fold_norms, mmcv_ext, peft_adapters
from .diffusers import rules as diffusers_rules
from .mmdet import rules as mmdet_rules


@dataclass(frozen=True)
class ImportHook:
    """One change in another package.

    Attributes:
        host: the package that is changed.
        module: whose import sets it off; ``'bnn_plugins'`` for at once.
        effect: what is different then, in a sentence.
        variable: the environment variable that turns it off when it is ``'0'``.
        change: makes the change, called with the imported module.
        needs: dotted attributes of the module that ``change`` relies on.
    """

    host: str
    module: str
    effect: str
    variable: str
    change: Callable[[ModuleType], object]
    needs: tuple[str, ...] = ()

    def __call__(self, module: ModuleType) -> None:
        """Make the change. Raises ``RuntimeError`` when the host no longer has what the change relies on."""
        for attribute in self.needs:
            try:
                attrgetter(attribute)(module)
            except AttributeError:
                raise RuntimeError(
                    f'{self.module} of {installed(self.host)} has no {attribute}, on which this bnn_plugins relies: install '
                    f'another version of it, or set {self.variable}=0 to do without the change') from None
        self.change(module)

    @property
    def enabled(self) -> bool:
        """What the environment says. Raises ``ValueError`` for a value that is neither empty nor '0' nor '1'."""
        value = os.environ.get(self.variable, '')
        if value not in ('', '0', '1'):
            raise ValueError(f"{self.variable} must be '0' (off) or '1' (on, the default), but got {value!r}")
        return value != '0'


def installed(host: str) -> str:
    """Name and version of the distribution that brings the package ``host``: ``'onedl-mmengine 0.10.12'``."""
    names = packages_distributions().get(host)
    return f'{names[0]} {version(names[0])}' if names else host


@functools.cache
def install() -> None:
    """Arrange for all rows that the environment does not turn off; a second call changes nothing."""
    for hook in HOOKS:
        if hook.enabled:
            wrapt.register_post_import_hook(hook, hook.module)


def table() -> str:
    """The rows as a table in Markdown."""
    rows = [f'| `{hook.host}` | `{hook.module}` | {hook.effect} | `{hook.variable}=0` |' for hook in HOOKS]
    return '\n'.join(['| package | when this is imported | what changes | turned off by |', '|---|---|---|---|', *rows])


def register_configs(config: ModuleType) -> None:
    """Our configs name what they mean, mmdet's by ``default_scope``; mmengine would look for all of it among ours."""
    sys.modules['mmengine.config.utils'].MODULE2PACKAGE['bnn_plugins'] = 'bnn_plugins'

    def without_scope(original, _, args, kwargs):
        path, scope = original(*args, **kwargs)
        return path, None if scope == 'bnn_plugins' else scope

    wrapt.wrap_function_wrapper(config, 'Config._get_cfg_path', without_scope)


def register_quantizer(auto: ModuleType) -> None:
    from .diffusers.quantizer import register
    register(auto)


def import_models(loading_utils: ModuleType) -> None:
    """diffusers does not import a module because a folder names it."""
    from .diffusers import unet_2d  # noqa: F401


def alias_old_modules(loading_utils: ModuleType) -> None:
    """A saved pipeline names the module of its classes. The only one that moved since is that of the UNet."""
    from .diffusers import unet_2d
    sys.modules.setdefault('bnn_plugins.hosts.diffusers.unet_2d', unet_2d)


def honour_config(configuration_utils: ModuleType) -> None:
    """diffusers itself builds a float model in silence, whose parameters are not those of the one that has the config."""

    def from_config(original, cls, args, kwargs):
        made = original(*args, **kwargs)
        config = args[0] if args else kwargs.get('config')
        if isinstance(config, dict) and 'quantization_config' in config:  # no folder, which diffusers deprecates
            from .diffusers.loading import binarize_as
            binarize_as(made[0] if isinstance(made, tuple) else made, config['quantization_config'])
        return made

    wrapt.wrap_function_wrapper(configuration_utils, 'ConfigMixin.from_config', from_config)


def copy_binary_unets(package: ModuleType) -> None:
    from .diffusers.loading import OF_UNETS, binary_from_unet
    for name, method in OF_UNETS.items():
        if hasattr(package, name):
            wrapt.wrap_function_wrapper(package, f'{name}.{method}', binary_from_unet)


def take_backend_by_name(pipe_quant_config: ModuleType) -> None:
    """diffusers asks for a twin of each backend in transformers, whose models we leave as they are."""
    def validate(original, config, args, kwargs):
        return None if config.quant_backend == 'bnn' else original(*args, **kwargs)

    def resolve(original, config, args, kwargs):
        given = signature(original).bind(*args, **kwargs).arguments
        return None if config.quant_backend == 'bnn' and not given.get('is_diffusers', True) else original(*args, **kwargs)

    for name, wrapper in (('_validate_init_kwargs_in_backends', validate), ('_resolve_quant_config', resolve)):
        wrapt.wrap_function_wrapper(pipe_quant_config, f'PipelineQuantizationConfig.{name}', wrapper)


def let_packed_models_move(modeling_utils: ModuleType) -> None:
    from .diffusers.quantizer import move_or_cast
    wrapt.wrap_function_wrapper(modeling_utils, 'ModelMixin.to', move_or_cast)


def save_in_order(modeling_utils: ModuleType) -> None:
    from .diffusers.quantizer import save_in_order
    wrapt.wrap_function_wrapper(modeling_utils, 'ModelMixin.save_pretrained', save_in_order)


def offload_whole(hooks: ModuleType) -> None:
    """A packed layer reads the tensors of its parts itself: they are loaded with it, not when somebody calls the parts."""

    def attach(original, _, args, kwargs):
        given = signature(original).bind(*args, **kwargs).arguments
        packed = {type(module).__name__ for module in given['module'].modules() if isinstance(module, PackedModule)}
        given['preload_module_classes'] = sorted(packed.union(given.get('preload_module_classes') or ()))
        return original(**given)

    for name in ('attach_align_device_hook', 'attach_execution_device_hook'):
        wrapt.wrap_function_wrapper(hooks, name, attach)


def offload_as_leaves(group_offloading: ModuleType) -> None:
    """The same for diffusers' groups of leaves."""
    group_offloading._GO_LC_SUPPORTED_PYTORCH_LAYERS += (PackedModule,)


def register_packed_files(checkpoint: ModuleType) -> None:
    from .packed_files import register
    register(checkpoint)


def find_in_zoo(infer: ModuleType) -> None:
    """``DetInferencer('name')`` looks in the metafiles of mmdet; a name of the zoo is a config and a packed file."""

    def find(original, _, args, kwargs):
        name = signature(original).bind(*args, **kwargs).arguments['model']
        if name not in zoo.names():
            return original(*args, **kwargs)
        from .stored_config import stored_config
        return stored_config(read_packed(zoo.path(name))), str(zoo.path(name))

    wrapt.wrap_function_wrapper(infer, 'BaseInferencer._load_model_from_metafile', find)


HOOKS = (
    ImportHook('mmcv', 'bnn_plugins',
               '`mmcv._ext` can be imported where mmcv has no compiled operators: plain torch ones stand in',
               'BNN_PLUGINS_MMCV_EXT', lambda _: mmcv_ext.install()),
    ImportHook('mmengine', 'mmengine.config.config',
               "`_base_ = 'bnn_plugins::detection/...'` finds the configs of the installed package",
               'BNN_PLUGINS_CONFIGS', register_configs, ('Config._get_cfg_path',)),
    ImportHook('mmengine', 'mmengine.runner.checkpoint',
               'packed `.safetensors` files are read wherever a checkpoint is: `Runner`, `DetInferencer`, `init_detector`',
               'BNN_PLUGINS_PACKED_FILES', register_packed_files, ('CheckpointLoader._schemes', '_load_checkpoint_to_model')),
    ImportHook('mmengine', 'mmengine.infer.infer', "`DetInferencer('name')` also takes the names of the zoo",
               'BNN_PLUGINS_ZOO', find_in_zoo, ('BaseInferencer._load_model_from_metafile',)),
    ImportHook('mmdet', 'bnn_plugins', "`binarize_` knows the layers of mmdet's models that must stay float",
               'BNN_PLUGINS_MMDET_RULES', lambda _: register_rules(mmdet_rules.RULES)),
    ImportHook('diffusers', 'bnn_plugins', "`binarize_` knows the layers of diffusers' models that must stay float, and roles",
               'BNN_PLUGINS_DIFFUSERS_RULES', lambda _: register_rules(diffusers_rules.RULES)),
    ImportHook('mmcv', 'mmcv.cnn.utils.fuse_conv_bn', '`fuse_conv_bn` folds a norm into a binary layer behind its sign',
               'BNN_PLUGINS_FUSE_CONV_BN', fold_norms.fold_in_place, ('_fuse_conv_bn', 'fuse_conv_bn')),
    ImportHook('mmcv', 'mmcv.cnn.bricks.conv_module', '`efficient_conv_bn_eval` of a `ConvModule` does the same',
               'BNN_PLUGINS_MMCV_EFFICIENT_BN', fold_norms.fold_at_each_call, ('efficient_conv_bn_eval_forward',)),
    ImportHook('mmengine', 'mmengine.model.efficient_conv_bn_eval',
               '`efficient_conv_bn_eval` of a config refuses binary layers',
               'BNN_PLUGINS_MMENGINE_EFFICIENT_BN', fold_norms.refuse_tracing,
               ('turn_on_efficient_conv_bn_eval_for_single_model',)),
    ImportHook('torch', 'torch.nn.utils',
               '`fuse_conv_bn_eval` and `fuse_linear_bn_eval` fold a norm into a binary layer behind its sign',
               'BNN_PLUGINS_TORCH_FUSION', fold_norms.fold_copies, ('fusion.fuse_conv_bn_eval', 'fusion.fuse_linear_bn_eval')),
    ImportHook('diffusers', 'diffusers.quantizers.auto', '`BNNConfig` is a `quantization_config`',
               'BNN_PLUGINS_QUANTIZER', register_quantizer, ('AUTO_QUANTIZER_MAPPING', 'AUTO_QUANTIZATION_CONFIG_MAPPING')),
    ImportHook('diffusers', 'diffusers.configuration_utils',
               '`from_config` makes the model binary that its config calls binary; so do `EMAModel` and `from_transformer`',
               'BNN_PLUGINS_FROM_CONFIG', honour_config, ('ConfigMixin.from_config',)),
    *(ImportHook('diffusers', module,
                 f'`{needs}` of a binary UNet makes a binary model with its latents; of a packed one it raises an error',
                 variable, copy_binary_unets, (needs,))
      for module, needs, variable in (
          ('diffusers.models.controlnets', 'ControlNetModel.from_unet', 'BNN_PLUGINS_FROM_UNET'),
          ('diffusers.models.unets', 'UNetMotionModel.from_unet2d', 'BNN_PLUGINS_FROM_UNET2D'))),
    ImportHook('diffusers', 'diffusers.quantizers.pipe_quant_config',
               "`PipelineQuantizationConfig(quant_backend='bnn')` makes the models of diffusers in a pipeline binary",
               'BNN_PLUGINS_PIPELINE_QUANTIZER', take_backend_by_name,
               ('PipelineQuantizationConfig._validate_init_kwargs_in_backends',
                'PipelineQuantizationConfig._resolve_quant_config')),
    ImportHook('diffusers', 'diffusers.models.modeling_utils',
               '`.to()` of a packed model takes the dtype that it has: `from_pipe` and IP-Adapters give it',
               'BNN_PLUGINS_TO', let_packed_models_move, ('ModelMixin.to',)),
    ImportHook('diffusers', 'diffusers.models.modeling_utils', 'the same binary model is saved as the same bytes',
               'BNN_PLUGINS_SAME_BYTES', save_in_order, ('ModelMixin.save_pretrained',)),
    ImportHook('diffusers', 'diffusers.pipelines.pipeline_loading_utils', 'saved pipelines find `BinaryUNet2DModel`',
               'BNN_PLUGINS_MODELS', import_models),
    ImportHook('diffusers', 'diffusers.pipelines.pipeline_loading_utils',
               'pipelines load that were saved when `BinaryUNet2DModel` was in `bnn_plugins.hosts`',
               'BNN_PLUGINS_OLD_MODULES', alias_old_modules),
    ImportHook('accelerate', 'accelerate.hooks', '`cpu_offload`, `disk_offload` and `device_map` load packed layers whole',
               'BNN_PLUGINS_OFFLOAD', offload_whole, ('attach_align_device_hook', 'attach_execution_device_hook')),
    ImportHook('diffusers', 'diffusers.hooks.group_offloading',
               'groups of leaves of `enable_group_offload` have whole packed layers',
               'BNN_PLUGINS_GROUP_OFFLOAD', offload_as_leaves, ('_GO_LC_SUPPORTED_PYTORCH_LAYERS',)),
    ImportHook('peft', 'peft.tuners.lora.model', 'adapters beside binary and packed layers are real',
               'BNN_PLUGINS_LORA', peft_adapters.add_real_adapters, ('dispatch_default',)),
    ImportHook('peft', 'peft.tuners.lora.layer', 'merging an adapter into a binary layer raises an error',
               'BNN_PLUGINS_PEFT', peft_adapters.refuse_merging, ('Linear.merge', '_ConvNd.merge')),
)
