"""``quantization_config=BNNConfig(...)``: diffusers loads, saves and rebuilds binary models through this quantizer.

diffusers has no call to register a quantizer of a third party; packages that bring one add it to the two tables of
``diffusers.quantizers.auto``, and so do we.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from diffusers.configuration_utils import ConfigMixin
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.utils import logging
from safetensors import SafetensorError, safe_open
from torch import nn

from bnn_kernels import LAYOUT_VERSION

from ...convert import CONVERTED, BNNConfig
from ...convert.binarize import convert_, to_binary
from ...convert.rules import BINARY_FORMS
from ...deploy import PACKED, pack_
from ...deploy.file import FORMAT, SCHEMA_VERSION, check_versions, checksum, damaged, in_order, parsed, prepare_
from ...deploy.plain_data import from_json
from ...layers import BinaryAttention, BinaryLayer, build_act
from ...layers.multihead import PROJECTIONS, SplitMultiheadAttention, split_names, split_tensors_

logger = logging.get_logger(__name__)


class BNNQuantizer(DiffusersQuantizer):
    """Swaps the layers of a model on the meta device before its weights arrive.

    A float checkpoint becomes the latents. A checkpoint of a binary model is recognised by its names: with ``weight_bits`` it
    is packed. ``is_quantized`` is True for packed models only, so that latent ones stay castable and trainable.

    Attributes:
        report (BinarizationReport | None): which layers became binary at loading, and why the others did not.
        layers (list[str]): names of the binary layers, which are saved with the weights: other rules may hold where they load.
    """

    use_keep_in_fp32_modules = True
    is_serializable = True
    is_compileable = True

    def __init__(self, quantization_config: BNNConfig, **kwargs):
        super().__init__(quantization_config, **kwargs)
        self.packed, self.report, self.layers = False, None, []
        # Of packed weights: the first file, the names of the tensors, the signatures of the layers where the file has them.
        self.path, self.stored_keys, self.signatures = '', set(), None
        self.loaded_keys, self.split = [], []  # of the checkpoint, and names of what was an nn.MultiheadAttention there

    @property
    def is_trainable(self) -> bool:
        return not self.packed

    def validate_environment(self, *args, **kwargs):
        if not args and not kwargs:  # how from_single_file calls it
            raise ValueError('binary models are loaded from folders: load the single file without quantization_config, then '
                             'binarize_ the model and save_pretrained it')
        device_map = kwargs.get('device_map')
        if isinstance(device_map, dict) and len(set(device_map.values())) > 1:
            raise ValueError('binary models are loaded onto one device: leave device_map out or give one device')

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list) -> list[str]:
        self.packed = any(key.endswith('.weight_bits') for key in loaded_keys)
        if self.packed:
            self.path, self.stored_keys = str(checkpoint_files[0]), set(loaded_keys)
            self.signatures = check_packed_weights(checkpoint_files)
            self.layers = list(self.signatures or ())
        elif str(checkpoint_files[0]).endswith('.safetensors'):
            with safe_open(str(checkpoint_files[0]), framework='pt') as file:
                self.layers = latent_layers(file.metadata() or {}, checkpoint_files[0])
        self.loaded_keys = loaded_keys
        return loaded_keys

    def maybe_update_state_dict(self, state_dict: dict) -> dict:
        for prefix in self.split:
            split_tensors_(state_dict, prefix)
        return state_dict

    def split_keys_(self, model: nn.Module) -> None:
        """Name the parameters of each ``nn.MultiheadAttention`` in a float checkpoint as the layers in its place, in the list
        that diffusers was given: it asks for the names before it has the model."""
        self.split = [f'{name}.' for name, module in model.named_modules() if isinstance(module, SplitMultiheadAttention)]
        for prefix in self.split:
            self.loaded_keys[:] = [new for key in self.loaded_keys for new in (
                split_names(prefix, key.removeprefix(prefix)) if key.startswith(prefix) else [key])]

    def preprocess_model(self, model: nn.Module, **kwargs):
        # Not the base class's: it would call every binary model quantized, and those refuse a change of dtype.
        model.quantization_method = self.quantization_config.quant_method
        return self._process_model_before_weight_loading(model, **kwargs)

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs):
        if not any(isinstance(module, BinaryLayer) for module in model.modules()):  # our own models have them already
            self.report = convert_(model, self.exact_config(model))
            note_config(model, self.quantization_config)
            self.split_keys_(model)
            logger.info('%s: %s', type(model).__name__, self.report.summary())
        if self.packed:
            pack_(model) if self.signatures is None else prepare_(model, self.signatures, self.path)
        elif self.report is not None:
            self.materialise_(model)

    def exact_config(self, model: nn.Module) -> BNNConfig:
        """With the layers that are binary in the checkpoint, whatever the rules of this version would say."""
        known = {name for name, module in model.named_modules() if isinstance(module, tuple(BINARY_FORMS))}
        attentions = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        known |= {f'{name}.{projection}' for name in attentions for projection in PROJECTIONS}
        layers = [name for name in self.layers if name not in {f'{attention}.core' for attention in attentions}]
        if not layers or not known.issuperset(layers):
            return self.quantization_config
        rules = {**dict.fromkeys(layers, 'binary'), '*': 'float'}
        return replace(self.quantization_config, rules=rules, roles=None, modules_to_not_convert=None)

    def new_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The modules that a float checkpoint does not know by name: binary layers, binary attention, and what stands in for
        ReLUs."""
        replaced = self.report.replaced if self.report else ()
        return {name: module for name, module in model.named_modules() if isinstance(module, BinaryLayer | BinaryAttention)
                or (name in replaced and not isinstance(module, SplitMultiheadAttention))}

    def materialise_(self, model: nn.Module) -> None:
        """Give what a float checkpoint does not have (thresholds, scales, slopes) its initial values, in place; the
        checkpoint of a binary model overwrites them."""
        cfg, dtype = self.quantization_config, next(model.parameters()).dtype
        for module in self.new_modules(model).values():
            if not any(tensor.is_meta for tensor in module.state_dict().values()):
                continue
            if isinstance(module, BinaryLayer):
                fill_(module, to_binary(module, cfg, 'cpu')[0].state_dict(), skip=('weight', 'bias'))
            elif isinstance(module, BinaryAttention):
                fill_(module, BinaryAttention(module.channels, module.heads, cfg.method, cfg.attention).to(dtype).state_dict())
            else:
                fill_(module, build_act(cfg.replacement_act, 1).to(dtype).state_dict())

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        """Thresholds and scales are new to a float checkpoint; one that calls itself binary has to have them, and packed
        weights have to be those of the model: diffusers itself only warns."""
        unknown = sorted(self.stored_keys - model.state_dict().keys())
        if self.packed and (missing_keys or unknown):
            raise ValueError(f'{self.path} is for another config: {len(missing_keys)} tensors missing in the file and '
                             f'{len(unknown)} unknown to the model, such as {(sorted(missing_keys) or unknown)[0]!r}')
        new = {f'{name}.{key}' for name, module in self.new_modules(model).items() for key in module.state_dict()
               if not (isinstance(module, BinaryLayer) and key in ('weight', 'bias'))}
        absent = sorted(new.intersection(missing_keys))
        if self.pre_quantized and absent:
            raise ValueError(f'the config says that this {type(model).__name__} is binary, but its weights are of a float '
                             f'model ({absent[0]!r} is missing): save the binary model again, or remove quantization_config '
                             'from config.json')
        return [key for key in missing_keys if key not in new]

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs):
        if not self.packed:
            self.materialise_(model)
        align_(model)
        model.is_quantized = self.packed
        self.layers = binary_layers(model)
        model.register_to_config(quantization_config=self.quantization_config)
        return model

    def get_state_dict_and_metadata(self, state_dict: dict, safe_serialization: bool = False) -> tuple[dict, dict]:
        if not self.packed:
            return state_dict, {'bnn_latent': json.dumps(self.layers)} if safe_serialization else {}
        if not safe_serialization:
            raise ValueError('packed models are written as safetensors only: leave safe_serialization=True')
        layers = json.dumps({name: local['signature'] for name, local in state_dict._metadata.items() if 'signature' in local})
        return state_dict, {'bnn_format': FORMAT, 'bnn_schema_version': str(SCHEMA_VERSION),
                            'bnn_layout_version': str(LAYOUT_VERSION), 'bnn_layers': layers,
                            'bnn_checksum': checksum(on_cpu(state_dict), {'layers': layers})}

    def _dequantize(self, model: nn.Module) -> nn.Module:
        raise NotImplementedError('a binary model has no float form: its latents are trained under the sign. Load the float '
                                  'checkpoint that it was made from')


def check_packed_weights(paths: list) -> dict[str, str] | None:
    """Raise ``ValueError`` for packed weights of another version, or altered. ``paths``: the file, or all of its shards.

    Returns the signatures of the packed layers; ``None`` from a folder of an earlier version, which did not have them.
    """
    tensors = {}
    for path in paths:
        try:
            with safe_open(str(path), framework='pt') as file:
                metadata = {key.removeprefix('bnn_'): value for key, value in (file.metadata() or {}).items()}
                check_versions(path, metadata)
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        except SafetensorError as error:
            raise damaged(path, error) from None
    layers = {key: metadata[key] for key in ('layers',) if key in metadata}
    if checksum(tensors, layers) != metadata.get('checksum'):
        raise ValueError(f'{paths[0]} was altered after it was written (its checksum does not fit): copy or pack it again')
    try:
        return parsed(layers, 'layers', str) if layers else None
    except ValueError as error:
        raise damaged(paths[0], error) from None


def latent_layers(metadata: dict[str, str], path) -> list[str]:
    """The names of the binary layers that were saved with latent weights."""
    try:
        layers = from_json(metadata.get('bnn_latent', '[]'))
        if not isinstance(layers, list) or not all(isinstance(name, str) for name in layers):
            raise ValueError("the entry 'bnn_latent' of its metadata is of another kind")
    except ValueError as error:
        raise damaged(path, error) from None
    return layers


def on_cpu(state_dict: dict) -> dict:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}


def align_(model: nn.Module) -> None:
    """Copy all tensors, in place: those mapped from a file begin at any byte, where float operators round differently."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def fill_(module: nn.Module, values: dict, skip: tuple[str, ...] = ()) -> None:
    """Put ``values`` in the place of those tensors of ``module`` that are on the meta device, but for ``skip``."""
    for name, tensor in module.state_dict(keep_vars=True).items():
        if tensor.is_meta and name not in skip:
            owner, _, leaf = name.rpartition('.')
            owner = module.get_submodule(owner)
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(values[name], tensor.requires_grad)
            else:
                owner._buffers[leaf] = values[name]


def guard_(model: nn.Module) -> None:
    """Keep diffusers from what would change binary layers in silence: storing latents in 8 bits, fusing projections."""
    names = [name for name, module in model.named_modules() if isinstance(module, BinaryLayer)]
    model._skip_layerwise_casting_patterns = (*(model._skip_layerwise_casting_patterns or ()),
                                              *(f'^{re.escape(name)}(\\.|$)' for name in names))
    for module in model.modules():
        if hasattr(module, 'fuse_projections') and any(isinstance(child, BinaryLayer) for child in module.modules()):
            module.fuse_projections = refuse_fusing


def refuse_fusing(*args, **kwargs) -> None:
    """Stands in for ``fuse_projections`` where a projection is binary: diffusers makes a new float layer of the weights."""
    raise ValueError('binary projections cannot be fused, the fused layer would be a float one: leave fuse_qkv_projections '
                     'out')


def refuse_casting(*args, **kwargs) -> None:
    """Stands in for ``bfloat16`` and ``double`` of a packed model."""
    raise ValueError('a packed model keeps the dtype that it was packed with: cast the latent model, then pack_ it')


def note_config(model: nn.Module, cfg: BNNConfig) -> None:
    """After ``binarize_`` of a diffusers model, or of one that has some: config and quantizer, to be saved as what it is.

    Raises:
        ValueError: when it has another config already, for its folder could only name one of them.
    """
    for part in parts_with_config(model):
        before = part.config.get('quantization_config')
        before = BNNConfig.from_dict(before) if isinstance(before, dict) else before
        if before is not None and before != cfg:
            raise ValueError(f'this {type(part).__name__} was made binary with {before.to_diff_dict()} before, and its config '
                             f'could not name {cfg.to_diff_dict()} as well: build it again, and say all in one config')
        guard_(part)
        part.hf_quantizer = BNNQuantizer(cfg, pre_quantized=True)
        part.hf_quantizer.layers = binary_layers(part)
        part.quantization_method = cfg.quant_method
        part.is_quantized = False
        part.register_to_config(quantization_config=cfg)


def binary_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BinaryLayer)]


def parts_with_config(model: nn.Module) -> list[ConfigMixin]:
    """The model, or the models of diffusers inside of it (a ``MultiControlNetModel`` has no config), if they have binary
    layers."""
    if isinstance(model, ConfigMixin):
        return [model] if any(isinstance(module, BinaryLayer) for module in model.modules()) else []
    return [part for child in model.children() for part in parts_with_config(child)]


def note_packed(model: nn.Module) -> None:
    """At ``pack_`` of a diffusers model: it is loaded through the quantizer, and refuses a change of dtype from now on."""
    for part in parts_with_config(model):
        if getattr(part, 'hf_quantizer', None) is None:
            if 'method' not in part.config:
                raise ValueError(f'this {type(part).__name__} was made binary by hand, so its folder could not say how to '
                                 'load it: use bnn_plugins.binarize_ or BinaryUNet2DModel')
            note_config(part, BNNConfig(method=part.config.method, pad_value=part.config.pad_value))  # BinaryUNet2DModel
        part.hf_quantizer.packed = part.is_quantized = True
        part.bfloat16 = part.double = refuse_casting  # as diffusers itself does for half and float


def move_or_cast(original, model: nn.Module, args: tuple, kwargs: dict):
    """``model.to(...)`` of diffusers, which refuses every dtype to a packed model: the one that it has is no change."""
    if getattr(model, 'is_quantized', False) and model.quantization_method == BNNConfig.quant_method:
        args = tuple(arg for arg in args if arg is not model.dtype)
        kwargs = {key: value for key, value in kwargs.items() if key != 'dtype' or value is not model.dtype}
    return original(*args, **kwargs)


def save_in_order(original, model: nn.Module, args: tuple, kwargs: dict):
    """``model.save_pretrained(...)`` of a binary model; safetensors writes the entries of its metadata in any order."""
    result = original(*args, **kwargs)
    if isinstance(getattr(model, 'hf_quantizer', None), BNNQuantizer):
        for path in Path(args[0] if args else kwargs['save_directory']).glob('*.safetensors'):
            with path.open('r+b') as file:
                size = file.read(8)
                before = size + file.read(int.from_bytes(size, 'little'))
                after = in_order(before)
                if len(after) == len(before):  # safetensors' own text, sorted
                    file.seek(0)
                    file.write(after)
    return result


def register(auto: ModuleType) -> None:
    """Enter the quantizer into the tables of ``diffusers.quantizers.auto``; a second call changes nothing."""
    auto.AUTO_QUANTIZER_MAPPING[BNNConfig.quant_method.value] = BNNQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[BNNConfig.quant_method.value] = BNNConfig
    for notes, note in ((CONVERTED, note_config), (PACKED, note_packed)):
        if note not in notes:
            notes.append(note)
