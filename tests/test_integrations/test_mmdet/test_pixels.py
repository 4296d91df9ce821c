"""Images handed over in uint8: what a convolution of pixels reads of them is what it reads of normalised ones."""

import pytest
import torch
from torch import nn

from bnn_plugins import quantize_rest_

pytest.importorskip('mmdet.models')

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample

NORMALISED = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


def preprocessor(name: str, **options) -> nn.Module:
    return MODELS.build(dict(type=name, **NORMALISED, **options))


def batch(*sizes: tuple[int, int]) -> dict:
    draw = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=draw).to(torch.uint8) for size in sizes]
    return dict(inputs=images, data_samples=[DetDataSample(metainfo=dict(img_shape=size)) for size in sizes])


@pytest.mark.parametrize('sizes', [[(32, 32)], [(30, 21), (18, 40)]], ids=str)
@pytest.mark.parametrize('options', [{}, dict(bgr_to_rgb=True, pad_size_divisor=32)], ids=str)
def test_pixels_are_those_of_normalised_images(sizes, options):
    before, after = preprocessor('DetDataPreprocessor', **options), preprocessor('bnn_plugins.PixelPreprocessor', **options)
    expected, found = before(batch(*sizes)), after(batch(*sizes))
    assert found['inputs'].dtype == torch.uint8
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1))
    with torch.no_grad():
        quantize_rest_(model, [expected['inputs']], image=NORMALISED)
        assert torch.equal(model(found['inputs']), model(expected['inputs']))
    for one, other in zip(found['data_samples'], expected['data_samples'], strict=True):
        assert one.metainfo == other.metainfo


def test_training_and_other_images_are_normalised():
    before, after, data = preprocessor('DetDataPreprocessor'), preprocessor('bnn_plugins.PixelPreprocessor'), batch((8, 8))
    assert torch.equal(after(batch((8, 8)), training=True)['inputs'], before(data, training=True)['inputs'])
    real = batch((8, 8))
    real['inputs'] = [image.float() for image in real['inputs']]
    assert after(real)['inputs'].dtype == torch.float32
