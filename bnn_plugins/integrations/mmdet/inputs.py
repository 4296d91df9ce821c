"""What a detector of mmdet is called with, for counting and timing."""

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.dense_heads import EmbeddingRPNHead
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import nn


def detector_inputs(model: nn.Module, shape: Sequence[int], seed: int = 0) -> tuple:
    """One random image ``[1, C, H, W]`` and its sample, as ``model(*inputs)`` takes them (``mode='tensor'``).

    Height and width are padded as the preprocessor of the model pads. The sample has one box with a mask, which heads that
    sample regions in this mode ask for, and is its own proposal for those that have no network for proposals.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    divisor = getattr(preprocessor, 'pad_size_divisor', 1)
    height, width = (-(-side // divisor) * divisor for side in shape)
    shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = dict(dict.fromkeys(shapes, (height, width)), scale_factor=(1.0, 1.0))
    image = torch.randn(1, image_channels(model), height, width, generator=torch.Generator().manual_seed(seed))
    sample = DetDataSample(metainfo=meta)
    box = torch.tensor([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]])
    sample.gt_instances = InstanceData(bboxes=box, labels=torch.zeros(1, dtype=torch.long),
                                       masks=BitmapMasks(np.zeros((1, height, width), np.uint8), height, width))
    sample.proposals = InstanceData(bboxes=box, scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.long))
    return image, [sample]


def detector_of(tracker: dict) -> dict:
    """The detector in the config of a tracker, with the preprocessing of the tracker's images."""
    given = tracker.get('data_preprocessor', {})
    shared = {key: given[key] for key in ('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor') if key in given}
    return {'data_preprocessor': dict(type='DetDataPreprocessor', **shared), **tracker['detector']}


def begin_proposals_(model: nn.Module) -> None:
    """Learned proposals (Sparse R-CNN) are boxes only once they are initialised."""
    for module in model.modules():
        if isinstance(module, EmbeddingRPNHead):
            module.init_weights()


def image_channels(model: nn.Module) -> int:
    """Of the preprocessor's mean; without one, of the first convolution, unless that is behind a rearrangement of pixels."""
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    if mean is not None:
        return len(mean)
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
    return first if first <= 4 else 3
