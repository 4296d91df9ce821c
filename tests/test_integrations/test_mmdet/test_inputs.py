"""What detectors are called with for counting: sizes, channels and samples that mmdet's own heads ask for."""

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from torch import nn

from benchmarks.zoo.mmdet_models import build, config_of, configs, shrink_, small_networks, without_checkpoints
from bnn_plugins import summarize
from bnn_plugins.integrations.mmdet.inputs import detector_inputs
from bnn_plugins.integrations.mmengine.summarize import summarize_config

# How the shape that is asked for is padded: RTMDet's config trains on one size, and does not.
CONFIGS = {'rtmdet/rtmdet_tiny_8xb32-300e_coco.py': ((64, 96), (64, 96)),
           'yolox/yolox_tiny_8xb8-300e_coco.py': ((61, 90), (64, 96)),
           'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py': ((61, 90), (64, 96)),
           'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py': ((61, 90), (64, 96))}

TRACKERS = ['bytetrack', 'qdtrack', 'masktrack_rcnn']


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


@pytest.mark.parametrize('family', ['ld', 'lad', 'sparse_rcnn', 'queryinst', 'yolact', *TRACKERS])
def test_summary_of_a_config(family, monkeypatch):
    """Teachers, learned proposals, masks, trackers. Mutations: proposals as they are drawn; the tracker itself, which wants
    clips, or packages that are not here."""
    cfg = Config.fromfile(configs() / config_of(family))
    without_checkpoints(cfg.model)
    shrink_(cfg.model)
    if isinstance(cfg.model.get('teacher_config'), str):
        cfg.model.teacher_config = str(configs() / cfg.model.teacher_config.removeprefix('configs/'))
    said = []
    monkeypatch.setattr('bnn_plugins.integrations.mmengine.summarize.print_log', lambda text, **_: said.append(text))
    with small_networks():
        model, summary = summarize_config(cfg, (64, 96))
    assert summary.totals.macs > 1e8
    tracks = family in TRACKERS
    assert [text.endswith('is a tracker: its detector is counted') for text in said] == [True] * tracks
    assert not tracks or model.data_preprocessor.pad_size_divisor == 32, 'images as the tracker pads them'


def test_channels_without_a_preprocessor():
    for convolution, channels in ((nn.Conv2d(1, 8, 3), 1), (nn.Conv2d(12, 8, 3), 3)):
        image, (sample,) = detector_inputs(nn.Sequential(convolution), (10, 12))
        assert image.shape == (1, channels, 10, 12)
        assert isinstance(sample, DetDataSample)
        assert torch.equal(sample.proposals.bboxes, torch.tensor([[3, 2.5, 9, 7.5]]))
