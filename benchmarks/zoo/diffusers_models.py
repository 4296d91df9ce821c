"""The model classes of the installed diffusers, each with a small config: their defaults, shrunk."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import diffusers
import torch
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from bnn_plugins import BinarizationReport, binarize_
from bnn_plugins.convert.flow import tensors
from bnn_plugins.integrations.diffusers.probe import FEATURES, TRIES, with_values
from bnn_plugins.integrations.diffusers.probe import inputs as suggested_inputs

from .diffusers_inputs import CANNOT, CASES
from .fresh import Fresh
from .stages import Case, outputs_of
from .structure import steady_layers

WAYS = ('whole',)
small_networks = nullcontext  # the configs are small
METHOD = 'bireal'
HEADS, WIDTH, BLOCK, SIZE = 2, 64, 64, 16
TEXT = ('cross_attention_dim', 'joint_attention_dim', 'caption', 'text', 'context_dim', 'cap_feat', 'pooled', 'encoder_hid')
LARGE = 60_000_000  # parameters
BLOCKS = dict(block_out_channels=(32, 64), layers_per_block=1)
# Where defaults are none, or do not shrink.
CONFIGS = {
    'UNet2DModel': dict(sample_size=16, block_out_channels=(32, 64), down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                        up_block_types=('AttnUpBlock2D', 'UpBlock2D'), norm_num_groups=8),
    'UNet2DConditionModel': dict(
        BLOCKS, sample_size=16, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), attention_head_dim=(2, 4),
        up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'), use_linear_projection=True, addition_embed_type='text_time',
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=80, cross_attention_dim=64, norm_num_groups=8),
    'UNet3DConditionModel': dict(
        BLOCKS, sample_size=16, down_block_types=('CrossAttnDownBlock3D', 'DownBlock3D'), cross_attention_dim=32,
        up_block_types=('UpBlock3D', 'CrossAttnUpBlock3D'), attention_head_dim=8, norm_num_groups=8),
    'UNetSpatioTemporalConditionModel': dict(
        BLOCKS, sample_size=16, down_block_types=('CrossAttnDownBlockSpatioTemporal', 'DownBlockSpatioTemporal'),
        up_block_types=('UpBlockSpatioTemporal', 'CrossAttnUpBlockSpatioTemporal'), cross_attention_dim=32,
        num_attention_heads=(2, 4), projection_class_embeddings_input_dim=96, addition_time_embed_dim=32),
    'ControlNetModel': dict(
        BLOCKS, down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'), cross_attention_dim=32, norm_num_groups=8,
        conditioning_embedding_out_channels=(16, 32)),
    'AutoencoderDC': dict(
        in_channels=3, latent_channels=4, attention_head_dim=2, encoder_block_types=('ResBlock', 'EfficientViTBlock'),
        decoder_block_types=('ResBlock', 'EfficientViTBlock'), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1), downsample_block_type='conv',
        upsample_block_type='interpolate', decoder_norm_types='rms_norm', decoder_act_fns='silu', scaling_factor=0.4),
    'HunyuanDiT2DModel': dict(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=3,
        cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4, hidden_size=24, text_len=4, text_len_t5=4),
    'LatteTransformer3DModel': dict(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=8,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn='gelu-approximate',
        num_embeds_ada_norm=1000, norm_type='ada_norm_single', norm_elementwise_affine=False),
    'Transformer2DModel': dict(num_attention_heads=2, attention_head_dim=16, in_channels=32, norm_num_groups=8,
                               cross_attention_dim=32),
    'DreamLiteTransformer2DModel': dict(num_attention_heads=2, attention_head_dim=16, in_channels=32, norm_num_groups=8,
                                        cross_attention_dim=32),
    'CogVideoXTransformer3DModel': dict(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=5, patch_size=2, max_text_seq_length=7),
    'MochiTransformer3DModel': dict(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=4,
        text_embed_dim=16, time_embed_dim=4, max_sequence_length=16),
    'Kandinsky5Transformer3DModel': dict(
        in_visual_dim=4, in_text_dim=16, in_text_dim2=32, time_dim=32, out_visual_dim=4, model_dim=32, ff_dim=64,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(8, 4, 4)),
    'AutoencoderKLWan': dict(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                             temperal_downsample=[False, True, True]),
    'ZImageTransformer2DModel': dict(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=1,
        n_kv_heads=2, cap_feat_dim=16, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32]),
    'T2IAdapter': dict(in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=2),
    'AutoencoderTiny': dict(encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32),
                            num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1)),
    'VQModel': dict(block_out_channels=(32, 64), down_block_types=('DownEncoderBlock2D',) * 2, norm_num_groups=8,
                    up_block_types=('UpDecoderBlock2D',) * 2, norm_type='spatial'),
}


def names() -> list[str]:
    """All model classes, but containers of models."""
    found = [getattr(diffusers, name, None) for name in dir(diffusers) if not name.startswith('_')]
    classes = [cls for cls in found if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls is not ModelMixin]
    return [cls.__name__ for cls in classes if '.' in cls.__module__ and not cls.__name__.startswith('Multi')]


def shrunk(cls: type) -> dict:
    """The defaults of ``cls`` with one layer of each kind, two heads and narrow blocks; what depends on these follows."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    cfg = {p.name: p.default for p in parameters if p.default is not p.empty}
    if cls.__name__ in CASES:
        return CASES[cls.__name__][0]
    if cls.__name__ in CONFIGS:
        return CONFIGS[cls.__name__]
    widths = {}
    heads = next((cfg[key] for key in ('num_attention_heads', 'num_heads', 'n_heads') if isinstance(cfg.get(key), int)), 0)
    dim = next((cfg[key] for key in ('attention_head_dim', 'head_dim') if isinstance(cfg.get(key), int)), 0)
    hidden = next((cfg[key] for key in ('hidden_size', 'dim', 'model_dim') if isinstance(cfg.get(key), int)), 0)
    dim = dim or (hidden // heads if heads and hidden else 0)
    if heads > HEADS and dim:
        widths = {heads * dim: HEADS * dim}
    return {key: small(key, value, widths) for key, value in cfg.items()}


def small(key: str, value, widths: dict[int, int]):
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, tuple | list):
        if key.endswith(('_dims', '_dim', '_dims_rope', '_dim_rope', 'patch_size', '_axes_dim', '_lens')) or 'rope' in key:
            return value
        return type(value)(small(key, item, widths) for item in value)
    if not isinstance(value, int):
        return value
    if value in widths:
        return widths[value]
    if 'layers' in key or 'num_blocks' in key or key in ('depth', 'num_res_blocks'):
        return min(value, 1)
    if 'heads' in key:
        return min(value, HEADS)
    if 'channels' in key and value > BLOCK:
        return BLOCK
    if key in ('ffn_dim', 'intermediate_size', 'ff_inner_dim') or ('len' not in key and any(part in key for part in TEXT)):
        return min(value, WIDTH)
    return min(value, SIZE) if key in ('sample_size', 'sample_width', 'sample_height') else value


def case(name: str, way: str, facts: dict) -> Case:
    """How a class is run, on the inputs that its config and the signature of its ``forward`` suggest."""
    cls, chosen = getattr(diffusers, name), {}
    facts['config'] = 'own' if name in CONFIGS or name in CASES else 'defaults, shrunk'

    def float_model() -> nn.Module:
        with torch.device('meta'):
            size = sum(parameter.numel() for parameter in cls(**shrunk(cls)).parameters())
        if size > LARGE:
            raise ValueError(f'{size:,} parameters, although shrunk')
        model = cls(**shrunk(cls))
        chosen.update(CASES[name][1]() if name in CASES else first_inputs(model))
        case.inputs = (), chosen
        return model

    def outputs(model: nn.Module, given: dict = chosen) -> list[Tensor]:
        return [tensor for tensor in tensors(model(**given)) if tensor.is_floating_point()]

    def reload(latent: nn.Module, packed: nn.Module, folder: Path) -> Iterator[list[Tensor]]:
        torch.save(chosen, folder / 'inputs.pt')
        for name, model in (('latent', latent), ('packed', packed)):
            model.save_pretrained(folder / name)
            elsewhere(folder, name)
            yield torch.load(folder / f'{name}.pt')

    def loaded(folder: Path, name: str) -> None:
        given = torch.load(folder / 'inputs.pt', weights_only=False)
        found = outputs_of(replace(case, outputs=lambda model: outputs(model, given)), cls.from_pretrained(folder / name))
        torch.save(found, folder / f'{name}.pt')

    def binary_model(model: nn.Module) -> tuple[nn.Module, BinarizationReport]:
        return model, binarize_(model, METHOD, chosen if name in CASES else None)

    def steady(model: nn.Module) -> set[str]:
        times = [key for key in chosen if ('timestep' in key or key == 't') and real(chosen[key])]
        named = [key for key in inspect.signature(model.forward).parameters if real(chosen.get(key)) and key not in times]
        stream = named[0] if named else None

        def call(shift: float, factor: float):
            return model(**{**chosen, stream: chosen[stream] + shift, **{key: chosen[key] * factor for key in times}})
        return steady_layers(model, call) if times and stream else set()

    case = Case(float_model, binary_model, outputs, outputs, ((), {}), reload, steady, name not in FEATURES,
                CANNOT.get(name, ''))
    elsewhere = Fresh(loaded)
    return case


def real(value) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def first_inputs(model: nn.Module) -> dict:
    """The first suggested inputs that ``model`` takes, with values."""
    failed = None
    for given in islice(suggested_inputs(model), TRIES):
        given = with_values(given)
        try:
            with torch.no_grad():
                model.eval()(**copy.deepcopy(given))
            return given
        except Exception as error:
            failed = failed or error
    raise failed

