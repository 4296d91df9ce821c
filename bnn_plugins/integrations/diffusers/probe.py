"""How a model of diffusers is called once to see its data flow: on the meta device, with inputs that its config and the
signature of its ``forward`` suggest. Shapes that do not fit are told by an error, and the next ones are tried.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from itertools import islice, product

import torch
from torch import Tensor, nn

from ...convert.flow import Probe

BATCH, TOKENS, FRAMES, TRIES = 2, 7, 5, 60
FEATURES = {'T2IAdapter', 'MultiAdapter'}  # what they return is added inside of a UNet
# Parts of the names of config keys that say how wide a text token is.
TEXT = ('cross_attention_dim', 'joint_attention_dim', 'caption', 'text', 'encoder', 'context', 'cap_feat')


def probe(model: nn.Module) -> Probe | None:
    """The calls of ``model``, ``None`` for what is no model of diffusers, or has no config."""
    modeling = sys.modules.get('diffusers.models.modeling_utils')
    if modeling is None or not isinstance(model, modeling.ModelMixin) or not hasattr(model, 'config'):
        return None
    tries = list(islice(inputs(model), TRIES))
    stream, *_ = inspect.signature(model.forward).parameters
    images = [given[stream] for given in tries]
    conditions = [tensor for given in tries for name, value in given.items() if name != stream
                  for tensor in (value.values() if isinstance(value, dict) else [value]) if isinstance(tensor, Tensor)]
    return Probe([lambda twin: first_that_runs(twin, tries)], images, conditions, type(model).__name__ not in FEATURES)


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
    """What is denoised or encoded: an image, a video in both orders, tokens, a sound."""
    channels = cfg.get('in_channels', cfg.get('in_dim', cfg.get('image_channels', 3)))
    size = cfg.get('sample_size', cfg.get('sample_height', 16))
    sizes = list(size[-2:]) if isinstance(size, list | tuple) else [size, size]
    sizes = [max(min(side, 64), 16) if isinstance(side, int) else 16 for side in sizes]
    sizes = sizes if len(sizes) == 2 else sizes * 2
    frames = cfg.get('video_length', FRAMES)
    shapes = [(channels, *sizes), (channels, frames, *sizes), (frames, channels, *sizes), (4 * 4, channels), (channels, 256)]
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
    if name in ('t', 'fps') or name.startswith(('timestep', 'r_timestep')):
        return meta() if needed or name in ('timestep', 'timesteps') else None
    if name == 'added_cond_kwargs':
        return added_conditions(cfg)
    makers: dict[str, Callable[[], object]] = {
        'encoder_hidden_states': lambda: meta(cfg.get('text_len', cfg.get('num_embeddings', TOKENS)), text),
        'encoder_hidden_states_t5': lambda: meta(cfg.get('text_len_t5', TOKENS), cfg.get('cross_attention_dim_t5', text)),
        'text_embedding_mask': lambda: meta(cfg.get('text_len', TOKENS)),
        'text_embedding_mask_t5': lambda: meta(cfg.get('text_len_t5', TOKENS)),
        'encoder_attention_mask': lambda: meta(TOKENS),
        'encoder_hidden_states_mask': lambda: meta(TOKENS),
        'image_meta_size': lambda: meta(6), 'style': lambda: meta(dtype=torch.long),
        'proj_embedding': lambda: meta(cfg.get('embedding_dim', text)),
        'img_shapes': lambda: [[(1, 4, 4)]] * BATCH,
        'cap_feats': lambda: meta(TOKENS, text),
        'pooled_projections': lambda: meta(cfg.get('pooled_projection_dim', cfg.get('pooled_projection_size', text))),
        'guidance': lambda: meta() if cfg.get('guidance_embeds') else None,
        'img_ids': lambda: meta(axes(cfg))[:1].expand(stream.shape[1], -1) if stream.ndim == 3 else None,
        'txt_ids': lambda: meta(axes(cfg))[:1].expand(TOKENS, -1),
        'controlnet_cond': lambda: condition_image(stream, cfg),
        'class_labels': lambda: class_labels(cfg),
        'added_time_ids': lambda: meta(3),
        'original_size': lambda: meta(2), 'target_size': lambda: meta(2), 'crop_coords': lambda: meta(2),
        'image_latents': lambda: stream,
        'image_embeddings': lambda: meta(text),
        'num_frames': lambda: 1 if needed or stream.ndim == 3 else None,
        'height': lambda: 4 if stream.ndim == 3 else None, 'width': lambda: 4 if stream.ndim == 3 else None,
    }
    return makers[name]() if name in makers else None


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
