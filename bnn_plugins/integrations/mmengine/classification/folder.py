"""Images in one folder per class, decoded when they are needed."""

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from ....binarize.lookup import checked_arguments
from ....registry import DATASETS
from .datasets import decode, existing

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp')


@DATASETS.register_module()
class ImageFolder(Dataset):
    """``path/<class>/<image>``, the layout of ImageNet; classes in alphabetical order.

    Workers decode and resize, the batch is augmented further and normalised on the device.

    Args:
        path: the folder.
        image_size: width and height of the images that are returned.
        train: a random part of the image (``scale`` of its area, ratio between 3/4 and 4/3), resized. Otherwise the shorter
            side is resized to ``image_size / crop_ratio`` and the centre is cropped.

    Raises:
        FileNotFoundError: without the folder. ValueError: where it has no class with images.
    """

    @checked_arguments
    def __init__(self, path: str, image_size: int = 224, train: bool = False, scale: tuple[float, float] = (0.08, 1.0),
                 crop_ratio: float = 0.875):
        folders = sorted(folder for folder in existing(path).iterdir() if folder.is_dir())
        self.files = [(file, label) for label, folder in enumerate(folders) for file in sorted(folder.iterdir())
                      if file.suffix.lower() in SUFFIXES]
        if not self.files:
            raise ValueError(f'{path!r} has no folders of images, one for each class')
        self.metainfo = dict(classes=tuple(folder.name for folder in folders))
        self.image_size, self.train, self.scale, self.crop_ratio = image_size, train, tuple(scale), crop_ratio

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict:
        file, label = self.files[index]
        image = decode(Path(file).read_bytes())
        image = self._random_part(image) if self.train else self._centre(image)
        return dict(inputs=torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))), labels=label)

    def __getitems__(self, indices: list[int]) -> list[dict]:
        samples = [self[index] for index in indices]
        return [dict(inputs=torch.stack([sample['inputs'] for sample in samples]),
                     labels=torch.tensor([sample['labels'] for sample in samples]))]

    def _resize(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        shrinks = width * height < image.shape[0] * image.shape[1]
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def _random_part(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        for _ in range(10):
            area = height * width * np.random.uniform(*self.scale)
            ratio = np.exp(np.random.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
            if 0 < w <= width and 0 < h <= height:
                left, top = np.random.randint(width - w + 1), np.random.randint(height - h + 1)
                return self._resize(image[top:top + h, left:left + w], self.image_size, self.image_size)
        return self._centre(image)

    def _centre(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        factor = self.image_size / self.crop_ratio / min(height, width)
        width, height = (max(round(side * factor), self.image_size) for side in (width, height))
        image = self._resize(image, width, height)
        left, top = (width - self.image_size) // 2, (height - self.image_size) // 2
        return image[top:top + self.image_size, left:left + self.image_size]
