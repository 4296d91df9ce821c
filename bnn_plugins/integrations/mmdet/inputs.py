"""What a detector of mmdet is called with, for counting and timing."""

from collections.abc import Sequence

import torch
from mmdet.structures import DetDataSample
from torch import nn


def detector_inputs(model: nn.Module, shape: Sequence[int], seed: int = 0) -> tuple:
    """One random image ``[1, 3, H, W]`` and its sample, as ``model(*inputs)`` takes them (``mode='tensor'``)."""
    height, width = shape
    shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    meta = dict(dict.fromkeys(shapes, (height, width)), scale_factor=(1.0, 1.0))
    channels = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).in_channels
    image = torch.randn(1, channels, height, width, generator=torch.Generator().manual_seed(seed))
    return image, [DetDataSample(metainfo=meta)]
