"""How a model of mmdet is called once to see its data flow: detectors with boxes and masks, backbones, necks, dense heads."""

import sys
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...convert.flow import Probe, RawOutputs

SIZE = (128, 160)


def probe(model: nn.Module) -> Probe | None:
    """The calls of ``model`` (a part of mmdet that has been imported), ``None`` for others and for trackers."""
    if 'mmdet.models' not in sys.modules or any(tensor.is_meta for tensor in model.parameters()):
        return None
    from mmdet.models.detectors import BaseDetector

    module = type(model).__module__
    if isinstance(model, BaseDetector):
        return detector(model)
    channels = getattr(model, 'in_channels', None)
    if '.backbones.' in module:
        return features(torch.randn(2, image_channels(model), *SIZE), lambda x: x, predicts=False)
    if '.necks.' in module and channels is not None:
        return features(pyramid(channels, 1), tuple, predicts=False)
    levels = len(getattr(getattr(model, 'prior_generator', None), 'strides', [0]))
    return features(pyramid(channels, levels), tuple) if '.dense_heads.' in module and channels is not None else None


def image_channels(model: nn.Module) -> int:
    return next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)


def pyramid(channels: int | list[int], levels: int) -> list[Tensor]:
    """Features of falling size; ``levels`` where ``channels`` does not say how many."""
    widths = [channels] * levels if isinstance(channels, int) else channels
    return [torch.randn(2, width, max(SIZE[0] // 4 >> k, 2), max(SIZE[1] // 4 >> k, 2)) for k, width in enumerate(widths)]


def features(x: Tensor | list[Tensor], given: Callable, predicts: bool = True) -> Probe:
    def call(model: nn.Module) -> object:
        model.train()  # of backbones with frozen stages it returns nothing
        return model(given(x))
    return Probe([call], x if isinstance(x, list) else [x], predicts=predicts)


def detector(model: nn.Module) -> Probe:
    """Its losses, then its raw outputs."""
    head = getattr(model, 'bbox_head', None)
    lines = [((head.img_h, head.img_w), 1, False)] if hasattr(head, 'n_offsets') else []
    kinds = [*lines, (SIZE, 1, True), (SIZE, 8, True), (SIZE, 1, False), ((320, 320), 1, True)]
    inputs = [samples(model, *kind) for kind in kinds]
    calls = [lambda model: first_that_runs(model, inputs, 'loss'),
             lambda model: RawOutputs(first_that_runs(model, inputs, 'tensor'))]
    return Probe(calls, [images for images, _ in inputs])


def first_that_runs(model: nn.Module, inputs: list[tuple[Tensor, list]], mode: str):
    """Heads differ in the labels that they take; some have more queries than a small image has places."""
    prepare_(model)
    model.train(mode == 'loss')
    *others, last = inputs
    with in_an_epoch():
        for images, labels in others:
            try:
                return model(images, labels, mode)
            except Exception:
                continue
        return model(*last, mode)


@contextmanager
def in_an_epoch():
    """Some heads ask mmengine for the epoch or the iteration, which it only knows in a training."""
    from mmengine.logging import MessageHub
    hub = MessageHub.get_current_instance()
    outside = [key for key in ('epoch', 'iter') if hub.get_info(key) is None]
    for key in outside:
        hub.update_info(key, 0)
    try:
        yield
    finally:
        for key in outside:
            hub.pop_info(key)


def prepare_(model: nn.Module) -> None:
    """Few proposals, where thousands would go through each box head."""
    from .inputs import begin_proposals_
    begin_proposals_(model)
    configs = [getattr(module, key, None) for module in model.modules() for key in ('train_cfg', 'test_cfg')]
    for cfg in configs:
        if isinstance(cfg, dict):
            for part in (cfg, *cfg.values()):
                if isinstance(part, dict) and 'nms_pre' in part and 'max_per_img' in part:
                    part.max_per_img = 16


def samples(model: nn.Module, size: tuple[int, int], stride: int, masks: bool = True) -> tuple[Tensor, list]:
    """Two preprocessed images with two boxes of the first class each, with or without masks; the map of classes has this
    ``stride``."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.structures import InstanceData

    data = demo_mm_inputs(2, image_shapes=(3, *size), num_items=[2, 2], num_classes=2, with_mask=masks, with_semantic=True,
                          sem_seg_output_strides=stride, use_box_type=False)
    points = getattr(getattr(model, 'bbox_head', None), 'n_offsets', 0)
    # No background, a line; it begins at the bottom, in the middle, at half a right angle, and is that long: columns.
    line = torch.cat([torch.tensor([0, 1, 0, size[1] / 2, 0.25, points]), torch.linspace(size[1] / 2, size[1], points)])[None]
    for k, sample in enumerate(data['data_samples']):
        sample.gt_instances.labels.zero_()
        sample.gt_instances.bboxes = torch.tensor([[8., 8, 70, 90], [40, 30, 150, 120]]) + k
        sample.gt_instances.instances_ids = torch.arange(2)
        sample.ignored_instances = sample.ignored_instances[:0]
        sample.proposals = InstanceData(bboxes=sample.gt_instances.bboxes + 2, scores=torch.ones(2),
                                        labels=torch.zeros(2, dtype=torch.long))
        sample.gt_sem_seg.sem_seg.zero_()
        if points:
            sample.lines_array = line
    # Some labels are only made in training.
    data = model.data_preprocessor(data, hasattr(model.data_preprocessor, 'pairwise_size'))
    images = data['inputs']
    if isinstance(images, list):  # a model whose config has no preprocessor
        images = torch.stack(images).float()
        for sample in data['data_samples']:
            sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    return images, data['data_samples']
