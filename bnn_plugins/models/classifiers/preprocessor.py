"""Augmentation and normalisation of whole batches, on the device."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from ...binarize.lookup import checked_arguments
from ...registry import MODELS


@MODELS.register_module()
class ImagePreprocessor(BaseDataPreprocessor):
    """``uint8`` images to the device, cropped and flipped there (in training), then normalised.

    A loader gives ``dict(inputs=[...], labels=[...])``: lists of images ``uint8 [C, H, W]`` and numbers, or lists with one
    whole batch, ``uint8 [N, C, H, W]`` and ``int64 [N]``, as the datasets of
    :mod:`bnn_plugins.integrations.mmengine.classification` give.

    Args:
        mean, std: per channel, of pixels in [0, 255].
        crop_padding (int): each image is padded with zeros on all sides by this and cropped to its size at a random place.
        flip (bool): mirror half of the images.
        channels_last (bool): memory format of the batch; faster on many devices, the same numbers.
    """

    @checked_arguments
    def __init__(self, mean: Sequence[float] = (0,), std: Sequence[float] = (255,), crop_padding: int = 0, flip: bool = False,
                 channels_last: bool = False, non_blocking: bool = False):
        super().__init__(non_blocking)
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.crop_padding, self.flip, self.channels_last = crop_padding, flip, channels_last

    def forward(self, data: dict, training: bool = False) -> dict:
        """``dict(inputs=float32 [N, C, H, W], labels=int64 [N])``."""
        data = self.cast_data(data)
        images, labels = self._batch(data['inputs'], 4), self._batch(data['labels'], 1)
        if training and (self.crop_padding or self.flip):
            images = self.augment(images)
        images = (images.to(self.mean.dtype) - self.mean) / self.std
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return dict(inputs=images, labels=labels)

    def _batch(self, parts: Tensor | Sequence, ndim: int) -> Tensor:
        if isinstance(parts, Tensor):
            return parts
        parts = [torch.as_tensor(part, device=self.device) for part in parts]
        return torch.cat(parts) if parts[0].ndim == ndim else torch.stack(parts)

    def augment(self, images: Tensor) -> Tensor:
        """Crop and flip each image of ``[N, C, H, W]`` by itself, in one gather."""
        (count, _, height, width), device, pad = images.shape, images.device, self.crop_padding
        rows = torch.arange(height, device=device) - pad + torch.randint(2 * pad + 1, (count, 1), device=device)
        columns = torch.arange(width, device=device).expand(count, width)
        if self.flip:
            columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
        columns = columns - pad + torch.randint(2 * pad + 1, (count, 1), device=device)
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
        moved = images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, images.shape[1], -1)).view_as(images)
        return moved * inside[:, None]
