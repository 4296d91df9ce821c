"""What detectors are called with for counting: sizes, channels and samples that mmdet's own heads ask for."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.hub import get_config
from torch import nn

from benchmarks.zoo.mmdet_models import build, without_checkpoints
from bnn_plugins import summarize
from bnn_plugins.integrations.mmdet.inputs import detector_inputs

# How the shape that is asked for is padded: RTMDet's config trains on one size, and does not.
CONFIGS = {'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': ((64, 96), (64, 96)),
           'yolox/yolox_tiny_8xb8-300e_coco.py': ((61, 90), (64, 96)),
           'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': ((61, 90), (64, 96)),
           'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py': ((61, 90), (64, 96))}


@pytest.mark.parametrize('name', CONFIGS)
def test_summary(name):
    """Mutation: 12 channels behind YOLOX's Focus, no padding for YOLOv3's upsampling, no proposals for Fast R-CNN."""
    cfg = get_config(f'mmdet::{name}').model
    without_checkpoints(cfg)
    model = build(cfg)
    shape, padded = CONFIGS[name]
    image, _ = inputs = detector_inputs(model, shape)
    assert image.shape == (1, 3, *padded)
    assert summarize(model, inputs).totals.macs > 1e7


def test_channels_without_a_preprocessor():
    for convolution, channels in ((nn.Conv2d(1, 8, 3), 1), (nn.Conv2d(12, 8, 3), 3)):
        image, (sample,) = detector_inputs(nn.Sequential(convolution), (10, 12))
        assert image.shape == (1, channels, 10, 12)
        assert isinstance(sample, DetDataSample)
        assert torch.equal(sample.proposals.bboxes, torch.tensor([[3, 2.5, 9, 7.5]]))
