"""Packed files, written from a checkpoint of mmengine."""

import copy
from itertools import islice
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from ...deploy import VerificationReport, fuse_, load_packed_, pack_, save_packed, unfuse_, verify
from .run import load_config


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as the Runner would build it, without its initial weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def plain(cfg: Config) -> dict:
    """What a packed file keeps of a config. To be called before the model is built, which moves parts of it around."""
    return {key: value for key, value in copy.deepcopy(cfg.to_dict()).items() if key not in ('custom_imports', 'filename')}


def pack_checkpoint(config: str, checkpoint: str, out: str, cfg_options: dict | None = None, verify: int = 0) -> Path:
    """Build the model of ``config``, load ``checkpoint``, pack it and write ``out`` (``.safetensors``).

    Args:
        verify: on how many images of the config's test set the file, loaded and fused, is compared with the checkpoint layer
            by layer (:func:`bnn_plugins.verify`); the report goes to the log.

    Raises:
        FileNotFoundError: when the checkpoint does not exist. RuntimeError: when it does not fit the config (each missing or
            unexpected key is named). ValueError: when the model has no binary layer, ``out`` is not ``*.safetensors``, or the
            verification fails.
    """
    if not out.endswith('.safetensors'):
        raise ValueError(f'a packed file is called *.safetensors, but got {out!r}')
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'the checkpoint {checkpoint!r} does not exist')
    cfg = load_config(config, cfg_options=cfg_options)
    stored = plain(cfg)
    model = build_model(cfg)
    loaded = load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    dataset_meta = loaded.get('meta', {}).get('dataset_meta', {})
    latent = copy.deepcopy(model) if verify else None
    path = save_packed(pack_(model), out, stored, {'dataset_meta': dataset_meta})
    if verify:
        report = verify_detector(cfg, latent, load_packed_(model, path), verify)
        print_log(str(report), logger='current')
        if not report.ok:
            raise ValueError(f'{path} does not compute what {checkpoint} computes: {report.summary()}')
    return path


def verify_detector(cfg: Config, latent: nn.Module, packed: nn.Module, images: int) -> VerificationReport:
    """Compare ``packed``, as it is and fused, with ``latent`` on the first images of the test set of ``cfg``."""
    loader = Runner.build_dataloader(dict(cfg.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False))
    report = VerificationReport()
    latent.eval()
    for batch in islice(loader, images):
        data = latent.data_preprocessor(batch, False)
        unfuse_(packed)
        report.add(verify(latent, packed, data['inputs'], data['data_samples']))
        fuse_(packed)
        report.add(verify(latent, packed, data['inputs'], data['data_samples']))
    return report
