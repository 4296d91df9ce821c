"""Images as they are: pixels in uint8 for a detector whose first convolution holds their mean and deviation."""

import math

import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ...deploy import Int8Pixels2d
from ...deploy.int8_layers import whole_pixels
from ...registry import MODELS

TYPES = ('DetDataPreprocessor', 'mmdet.DetDataPreprocessor')


class WholePixels(ImgDataPreprocessor):
    """Pads and stacks images of uint8 as they are; in training, and of other images, those of mmengine, normalised."""

    def forward(self, data: dict, training: bool = False) -> dict:
        images = data['inputs']
        if training or isinstance(images, Tensor) or any(image.dtype != torch.uint8 for image in images):
            return super().forward(data, training)
        data = self.cast_data(data)
        images, divisor = data['inputs'], self.pad_size_divisor
        size = [math.ceil(max(image.shape[side] for image in images) / divisor) * divisor for side in (1, 2)]
        batch = torch.empty(len(images), len(images[0]), *size, dtype=torch.uint8, device=images[0].device,
                            memory_format=torch.channels_last)
        if any(list(image.shape[1:]) != size for image in images):
            batch.copy_(whole_pixels(self.mean))
        for place, image in zip(batch, images, strict=True):
            place[:, :image.shape[1], :image.shape[2]] = image.flip(0) if self._channel_conversion else image
        data['inputs'] = batch
        return data


@MODELS.register_module()
class PixelPreprocessor(DetDataPreprocessor, WholePixels):
    """Leaves the normalisation to the model (:class:`bnn_plugins.deploy.Int8Pixels2d`), with the arguments of mmdet's.

    What lies beside a smaller image of a batch is the whole pixel that is nearest to the mean, in the place of the zero that
    normalised images are padded with.
    """


def hand_over_pixels(config: dict, model: nn.Module) -> None:
    """Let the stored config of a packed model hand over pixels, if the model reads them and nothing else of the images."""
    from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
    before = config.get('data_preprocessor') or {}
    if isinstance(model, SingleStageDetector | TwoStageDetector) and before.get('type') in TYPES \
            and not before.get('pad_value') and any(isinstance(module, Int8Pixels2d) for module in model.modules()):
        before['type'] = 'bnn_plugins.PixelPreprocessor'
