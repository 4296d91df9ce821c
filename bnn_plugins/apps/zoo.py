"""Models of the zoo, built from their packed files: what ``bnn_plugins.load`` is."""

from torch import nn

from .. import zoo
from ..deploy import PackedFile, fuse_, load_packed_, read_packed


def load(name: str, fuse: bool = True):
    """A trained model of the zoo, built from its packed file, in evaluation mode; nothing is downloaded.

    Args:
        name: one of ``bnn_plugins.zoo.names()``.
        fuse: whether blocks are fused (:func:`bnn_plugins.fuse_`).

    Returns:
        by the task on its card. ``detection``: a detector of mmdet, for ``mmdet.apis.inference_detector(model, 'photo.jpg')``.
        ``classification``: logits ``[N, classes]`` of images ``[N, C, H, W]``. ``text``: a language model, whose
        ``write('ROMEO:')`` continues a text. ``generation``, ``super-resolution``: a pipeline of diffusers.

    Raises:
        KeyError: for a name that the zoo does not have. ValueError: when the file is not the one of its card. ImportError:
            when the package that the model needs (mmengine, mmdet, diffusers) is not installed.

    Example:
        >>> model = load('retinanet_bnn-r18_fpn_digits')
        >>> model.dataset_meta['classes'][3]
        '3'
    """
    return build(read_packed(zoo.path(name)), fuse)


def build(file: PackedFile, fuse: bool = True):
    """What a packed file of the zoo holds; see :func:`load`."""
    if 'pipeline' in file.config:
        return build_pipeline(file, fuse)
    from ..integrations.mmengine.pack import build_model
    from ..integrations.stored_config import stored_config
    cfg = stored_config(file)
    model = filled(build_model(cfg), file, fuse)
    model.cfg, model.dataset_meta = cfg, file.meta['dataset_meta']  # what mmdet's inference_detector reads
    return model


def build_pipeline(file: PackedFile, fuse: bool):
    from .diffusion.build import build as build_part
    parts = file.config
    unet = filled(build_part(parts['model']), file, fuse)
    pipeline = build_part(parts['pipeline'], unet=unet, scheduler=build_part(parts['noise_scheduler']))
    pipeline.set_progress_bar_config(leave=False)
    return pipeline


def filled(model: nn.Module, file: PackedFile, fuse: bool) -> nn.Module:
    model = load_packed_(model, file)
    if fuse:
        fuse_(model)
    return model
