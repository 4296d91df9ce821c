"""Packed files in the OpenMMLab hosts: written from a checkpoint, read wherever a checkpoint is read."""

from pathlib import Path

from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from ...deploy import attach_signatures, pack_, read_packed, save_packed
from .run import load_config


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as the Runner would build it, without its initial weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def pack_checkpoint(config: str, checkpoint: str, out: str, cfg_options: dict | None = None) -> Path:
    """Build the model of ``config``, load ``checkpoint``, pack it and write ``out`` (``.safetensors``).

    Raises:
        FileNotFoundError: when the checkpoint does not exist. RuntimeError: when it does not fit the config (each missing or
            unexpected key is named). ValueError: when the model has no binary layer or ``out`` is not ``*.safetensors``.
    """
    if not out.endswith('.safetensors'):
        raise ValueError(f'a packed file is called *.safetensors, but got {out!r}')
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'the checkpoint {checkpoint!r} does not exist')
    cfg = load_config(config, cfg_options=cfg_options)
    text = cfg.pretty_text  # building moves parts of the config around
    model = build_model(cfg)
    loaded = load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    dataset_meta = loaded.get('meta', {}).get('dataset_meta', {})
    return save_packed(pack_(model), out, text, {'dataset_meta': dataset_meta})


def load_from_packed(filename: str, map_location=None) -> dict:
    """A packed file as the checkpoint that mmengine's loaders expect.

    Binary layers of the model turn into packed ones when they meet their bits; the config in the message hub lets
    ``DetInferencer(weights=...)`` work without a config.
    """
    file = read_packed(filename)
    return {'state_dict': attach_signatures(file), 'meta': file.meta, 'message_hub': {'runtime_info': {'cfg': file.config}}}
