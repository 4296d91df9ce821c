"""Packed files, written from a checkpoint of mmengine."""

import copy
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import nn

from ...deploy import RESTS, VerificationReport, fuse_, load_packed_, pack_, quantize_rest_, save_packed, unfuse_, verify
from ...deploy.packed import PackedModule
from ...progress import track
from .run import load_config


def build_model(cfg: Config) -> nn.Module:
    """The model of a config, as the Runner would build it, without its initial weights."""
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    return MODELS.build(cfg.model)


def plain(cfg: Config) -> dict:
    """What a packed file keeps of a config. To be called before the model is built, which moves parts of it around."""
    return {key: value for key, value in copy.deepcopy(cfg.to_dict()).items() if key not in ('custom_imports', 'filename')}


def pack_checkpoint(config: str, checkpoint: str, out: str, cfg_options: dict | None = None, verify: int = 0,
                    rest: str = 'float32', calibration: str | int = 32) -> Path:
    """Build the model of ``config``, load ``checkpoint``, pack it and write ``out`` (``.safetensors``).

    Args:
        checkpoint: a latent one; a packed file, whose real layers become int8 or bfloat16.
        rest: what its real layers become: ``'float32'``, as they are, ``'bfloat16'`` or ``'int8'``
            (:func:`bnn_plugins.quantize_rest_`; the report goes to the log). In int8 a convolution of the images takes pixels
            as they are, and the file's config hands them over.
        calibration: of int8 and bfloat16: how many images of the config's validation set, or a folder of images.
        verify: on how many images of the config's test set the file, loaded and fused, is compared with the checkpoint layer
            by layer (:func:`bnn_plugins.verify`); the report goes to the log.

    Raises:
        FileNotFoundError: when the checkpoint or the folder does not exist. RuntimeError: when it does not fit the config
            (each missing or unexpected key is named). ValueError: when the model has no binary layer, ``out`` is not
            ``*.safetensors``, ``rest`` is unknown, there is nothing to calibrate with, or the verification fails.
    """
    if not out.endswith('.safetensors'):
        raise ValueError(f'a packed file is called *.safetensors, but got {out!r}')
    if rest not in RESTS:
        raise ValueError(f'the real layers of a packed file are {", ".join(RESTS)}, but got {rest!r}')
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'the checkpoint {checkpoint!r} does not exist')
    cfg = load_config(config, cfg_options=cfg_options)
    stored = plain(cfg)
    model = build_model(cfg)
    loaded = load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
    dataset_meta = loaded.get('meta', {}).get('dataset_meta', {})
    if any(isinstance(module, PackedModule) for module in model.modules()):
        if rest == 'float32' or verify:
            raise ValueError(f'{checkpoint} is packed already: all that is left is --rest int8 or bfloat16, without --verify')
        unfuse_(model)  # loading has fused it
        latent = None
    else:
        latent = copy.deepcopy(model) if verify else None
        pack_(model)
    if rest != 'float32':
        report = quantize_rest_(model, calibration_batches(cfg, calibration), rest, image=normalisation(model),
                                run=lambda model, batch: model.test_step(batch))
        print_log(str(report), logger='current')
        if find_spec('mmdet') is not None:
            from ..mmdet.pixels import hand_over_pixels
            hand_over_pixels(stored['model'], model)
    path = save_packed(model, out, stored, {'dataset_meta': dataset_meta})
    if verify:
        report = verify_detector(cfg, latent, load_packed_(model, path), verify)
        print_log(str(report), logger='current')
        if not report.ok:
            raise ValueError(f'{path} does not compute what {checkpoint} computes: {report.summary()}')
    return path


def normalisation(model: nn.Module) -> dict | None:
    """Mean and deviation of the pixels that the data preprocessor of a model hands over."""
    before = getattr(model, 'data_preprocessor', None)
    return dict(mean=before.mean, std=before.std) if getattr(before, '_enable_normalize', False) else None


def calibration_batches(cfg: Config, source: str | int) -> list[dict]:
    """What ``model.test_step`` takes: the first images of the validation set of ``cfg``, spread over it, or those of a folder.

    Raises:
        FileNotFoundError: for a folder that is not there. ValueError: where there are no images.
    """
    if isinstance(source, str) and not source.isdecimal():
        paths = image_files(source)
        pipeline = Compose([step for step in cfg.test_dataloader.dataset.pipeline if 'Annotations' not in step['type']])
        samples = [pipeline(dict(img_path=str(path), img_id=number)) for number, path in enumerate(paths)]
    else:
        loader = cfg.get('val_dataloader') or cfg.test_dataloader
        dataset = DATASETS.build(copy.deepcopy(loader['dataset']))
        count = min(int(source), len(dataset))
        samples = [dataset[len(dataset) * i // count] for i in range(count)]
    if not samples:
        raise ValueError(f'there are no images to calibrate with in {source}')
    return [pseudo_collate([sample]) for sample in samples]


def image_files(folder: str) -> list[Path]:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f'--calibration: {folder!r} is no folder; a number takes images of the validation set')
    return sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in ('.jpg', '.jpeg', '.png', '.bmp'))


def verify_checkpoint(config: str, checkpoint: str, packed: str, images: int = 4,
                      cfg_options: dict | None = None) -> VerificationReport:
    """Compare a packed file, as it is and fused, with the checkpoint that it was made from.

    Args:
        images: how many of the test set of ``config``.

    Raises:
        FileNotFoundError: when a file does not exist. RuntimeError: when the checkpoint does not fit the config. ValueError:
            when the packed file is damaged or for another config.
    """
    cfg = load_config(config, cfg_options=cfg_options)
    latent, loaded = build_model(copy.deepcopy(cfg)), build_model(copy.deepcopy(cfg))
    load_checkpoint(latent, checkpoint, map_location='cpu', strict=True)
    return verify_detector(cfg, latent, load_packed_(loaded, packed), images)


def verify_detector(cfg: Config, latent: nn.Module, packed: nn.Module, images: int) -> VerificationReport:
    """Compare ``packed``, as it is and fused, with ``latent`` on the first images of the test set of ``cfg``."""
    loader = Runner.build_dataloader(dict(cfg.test_dataloader, batch_size=1, num_workers=0, persistent_workers=False))
    report = VerificationReport()
    latent.eval()
    for batch in track(islice(loader, images), 'verify', images):
        data = latent.data_preprocessor(batch, False)
        unfuse_(packed)
        report.add(verify(latent, packed, data['inputs'], data['data_samples']))
        fuse_(packed)
        report.add(verify(latent, packed, data['inputs'], data['data_samples']))
    return report
