"""How a model of diffusers is called once to see its data flow: on the meta device (with numbers, where a small model needs
them), with inputs that its config and the signature of its ``forward`` suggest. Shapes that do not fit are told by an error,
and the next ones are tried.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import islice, product

import torch
from torch import Tensor, nn

from ...convert.dataflow import copy_to
from ...convert.flow import Probe

BATCH, TOKENS, FRAMES, TRIES = 2, 7, 5, 60
SMALL = 50_000_000  # parameters
FEATURES = {'T2IAdapter', 'MultiAdapter'}  # what they return is added inside of a UNet
POOLED = ('pooled_projection_dim', 'pooled_projection_size', 'in_text_dim2')
# Parts of the names of config keys that say how wide a text token is.
TEXT = ('cross_attention_dim', 'joint_attention_dim', 'caption', 'text', 'encoder', 'context', 'cap_feat')


def probe(model: nn.Module) -> Probe | None:
    """The calls of ``model``, ``None`` for what is no model of diffusers, or has no config."""
    modeling = sys.modules.get('diffusers.models.modeling_utils')
    if modeling is None or not isinstance(model, modeling.ModelMixin) or not hasattr(model, 'config'):
        return None
    tries = list(islice(inputs(model), TRIES))
    if not_on_meta(model, tries):
        tries = [with_values(given) for given in tries]
    stream, *_ = inspect.signature(model.forward).parameters
    images = [given[stream] for given in tries]
    conditions = [tensor for given in tries for name, value in given.items() if name != stream
                  for tensor in (value.values() if isinstance(value, dict) else [value]) if isinstance(tensor, Tensor)]
    return Probe([lambda twin: first_that_runs(twin, tries)], images, conditions, type(model).__name__ not in FEATURES)


def not_on_meta(model: nn.Module, tries: list[dict]) -> bool:
    """Whether the model is small enough to be called with real numbers, and computes something that the meta device cannot."""
    parameters = list(model.parameters())
    if sum(parameter.numel() for parameter in parameters) > SMALL or any(parameter.is_meta for parameter in parameters):
        return False
    try:
        first_that_runs(copy_to(model, torch.device('meta')), tries)
        return False
    except Exception:
        return True


def with_values(value, name: str = ''):
    """Numbers for the tensors of the meta device in a dict of arguments: a mask of ones, the first class, a late timestep."""
    if isinstance(value, dict):
        return {key: with_values(item, key) for key, item in value.items()}
    if not isinstance(value, Tensor) or not value.is_meta:
        return value
    if not value.is_floating_point() or 'mask' in name:
        return torch.full(value.shape, float('mask' in name)).to(value.dtype)
    generator = torch.Generator().manual_seed(0)
    return torch.full(value.shape, 500.0) if value.ndim == 1 else torch.randn(value.shape, generator=generator)


def first_that_runs(model: nn.Module, tries: list[dict]):
    error = None
    for given in tries:
        try:
            return model.eval()(**given)
        except Exception as failed:
            error = error or failed
    raise error


def inputs(model: nn.Module) -> Iterator[dict]:
    """Keyword arguments to try, the likeliest first; all tensors are on the meta device."""
    cfg = {key: value for key, value in dict(model.config).items() if value is not None}
    parameters = inspect.signature(model.forward).parameters
    names = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    needed = {name for name in names if parameters[name].default is inspect.Parameter.empty}
    for masks, stream, text in product((False, True), streams(cfg), text_widths(cfg)):
        given = {names[0]: stream}
        for name in names[1:]:
            value = argument(name, stream, text, cfg, name in needed)
            if value is not None and (masks or name in needed or 'mask' not in name):
                given[name] = value
        yield given


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(BATCH, *shape, dtype=dtype, device='meta')


def streams(cfg: dict) -> list[Tensor]:
    """What is denoised or encoded: an image, a video in three orders, tokens, a sound."""
    channels = cfg.get('in_channels', cfg.get('in_dim', cfg.get('image_channels', 3)))
    size = cfg.get('sample_size', cfg.get('sample_height', 16))
    sizes = list(size[-2:]) if isinstance(size, list | tuple) else [size, size]
    sizes = [max(min(side, 64), 16) if isinstance(side, int) else 16 for side in sizes]
    sizes = sizes if len(sizes) == 2 else sizes * 2
    frames = cfg.get('video_length', FRAMES)
    channels = cfg.get('in_visual_dim', channels)
    shapes = [(channels, *sizes), (channels, frames, *sizes), (frames, channels, *sizes), (4 * 4, channels), (channels, 256)]
    if 'in_visual_dim' in cfg:
        shapes.append((frames, *sizes, channels))
    if 'embedding_dim' in cfg:
        shapes.insert(0, (cfg['embedding_dim'],))
    return [meta(*shape) for shape in shapes]


def text_widths(cfg: dict) -> list[int]:
    """How wide a text token may be."""
    found = [value for key, values in cfg.items() if any(part in key for part in TEXT)
             for value in (values if isinstance(values, list | tuple) else [values])
             if isinstance(value, int) and not isinstance(value, bool) and value > 3]
    return list(dict.fromkeys(found)) or [32]


def argument(name: str, stream: Tensor, text: int, cfg: dict, needed: bool):
    """The value of an argument, ``None`` to leave it out."""
    if name in ('t', 'fps', 'audio_timestep') or name.startswith(('timestep', 'r_timestep')):
        return meta() if needed or name in ('timestep', 'timesteps') else None
    if name == 'added_cond_kwargs':
        return added_conditions(cfg)
    makers: dict[str, Callable[[], object]] = {
        'encoder_hidden_states': lambda: meta(cfg.get('text_len', cfg.get('num_embeddings', TOKENS)), text),
        'encoder_hidden_states_t5': lambda: meta(cfg.get('text_len_t5', TOKENS), cfg.get('cross_attention_dim_t5', text)),
        'text_embedding_mask': lambda: meta(cfg.get('text_len', TOKENS)),
        'text_embedding_mask_t5': lambda: meta(cfg.get('text_len_t5', TOKENS)),
        'encoder_attention_mask': lambda: meta(TOKENS), 'encoder_mask': lambda: meta(TOKENS),
        'encoder_hidden_states_mask': lambda: meta(TOKENS),
        'image_meta_size': lambda: meta(6), 'style': lambda: meta(dtype=torch.long),
        'proj_embedding': lambda: meta(cfg.get('embedding_dim', text)),
        'img_shapes': lambda: [[(1, 4, 4)]] * BATCH,
        'cap_feats': lambda: meta(TOKENS, text),
        'pooled_projections': lambda: meta(next((cfg[key] for key in POOLED if key in cfg), text)),
        'guidance': lambda: meta() if cfg.get('guidance_embeds') else None,
        'img_ids': lambda: meta(axes(cfg))[:1].expand(stream.shape[1], -1) if stream.ndim == 3 else None,
        'txt_ids': lambda: meta(axes(cfg))[:1].expand(TOKENS, -1),
        'controlnet_cond': lambda: condition_image(stream, cfg),
        'class_labels': lambda: class_labels(cfg),
        'added_time_ids': lambda: meta(3),
        'original_size': lambda: meta(2), 'target_size': lambda: meta(2), 'crop_coords': lambda: meta(2),
        'image_latents': lambda: stream, 'context_latents': lambda: stream if needed else None,
        'image_embeddings': lambda: meta(text),
        'image_embeds': lambda: meta(TOKENS, cfg.get('image_proj_dim', cfg.get('image_embed_dim', text))) if needed else None,
        'indices_latents': lambda: meta(stream.shape[2])[:1].expand(BATCH, -1) if stream.ndim == 5 else None,
        'text_bth': lambda: meta(TOKENS, text), 'text_lens': lambda: meta(dtype=torch.long),
        'prior_token_id': lambda: meta(16, dtype=torch.long), 'prior_token_drop': lambda: meta(16, dtype=torch.bool),
        'target_input_ids': lambda: meta(TOKENS, dtype=torch.long),
        'position_ids': lambda: meta(TOKENS + stream.shape[1], axes(cfg))[0] if stream.ndim == 3 else None,
        'audio_hidden_states': lambda: meta(TOKENS, cfg.get('audio_in_channels', text)) if needed else None,
        'audio_encoder_hidden_states': lambda: meta(TOKENS, text),
        'audio_num_frames': lambda: TOKENS if 'audio_in_channels' in cfg else None,
        'visual_rope_pos': lambda: [torch.arange(side) for side in grid(stream, cfg)] if stream.ndim == 5 else None,
        'text_rope_pos': lambda: torch.arange(TOKENS),
        'num_frames': lambda: 1 if needed or stream.ndim == 3 else None,
        'height': lambda: 4 if stream.ndim == 3 else None, 'width': lambda: 4 if stream.ndim == 3 else None,
    }
    return makers[name]() if name in makers else None


def grid(stream: Tensor, cfg: dict) -> list[int]:
    """How many patches a video ``[B, T, H, W, C]`` has."""
    return [side // patch for side, patch in zip(stream.shape[1:4], cfg.get('patch_size', (1, 1, 1)), strict=True)]


def axes(cfg: dict) -> int:
    return len(cfg.get('axes_dims_rope', cfg.get('axes_dim', (0, 0, 0))))


def class_labels(cfg: dict) -> Tensor | None:
    labelled = any(cfg.get(key) for key in ('num_class_embeds', 'class_embed_type', 'num_embeds_ada_norm'))
    return meta(dtype=torch.long) if labelled else None


def condition_image(stream: Tensor, cfg: dict) -> Tensor:
    if stream.ndim == 4 and 'conditioning_embedding_out_channels' in cfg:
        scale = 2 ** (len(cfg['conditioning_embedding_out_channels']) - 1)
        return meta(cfg.get('conditioning_channels', 3), scale * stream.shape[2], scale * stream.shape[3])
    return stream


def added_conditions(cfg: dict) -> dict:
    """What SDXL and PixArt know besides the text."""
    if cfg.get('addition_embed_type') == 'text_time':
        ids = 6 * cfg.get('addition_time_embed_dim', 0)
        return {'text_embeds': meta(cfg.get('projection_class_embeddings_input_dim', ids) - ids), 'time_ids': meta(6)}
    if cfg.get('use_additional_conditions') or (cfg.get('sample_size') == 128 and 'caption_channels' in cfg):
        return {'resolution': meta(2), 'aspect_ratio': meta(1)}
    return {'resolution': None, 'aspect_ratio': None}
