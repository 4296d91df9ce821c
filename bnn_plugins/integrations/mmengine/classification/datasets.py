"""Small images, decoded once and kept in memory as ``uint8``."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from ....binarize.lookup import checked_arguments, unknown
from ....registry import DATASETS

PARTS = ('all', 'train', 'val')
CIFAR10 = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


class InMemoryDataset(Dataset):
    """Base class. A loader that asks for many samples gets one batch, ``[dict(inputs=[N, C, H, W], labels=[N])]``.

    Args:
        images: ``uint8 [N, C, H, W]``.
        labels: ``int64 [N]``.
        classes: names, or how many there are.
        part: ``'val'`` is the held-out part of the file, ``'train'`` the rest, ``'all'`` both.
        held_out: number of images of the held-out part, the same share of each class.
        part_seed: which images are held out.
        size: that many images of the part, the same share of each class.
        shrink: squares of that many pixels are averaged.

    Raises:
        ValueError: for another part, and where there are fewer images than asked for.
    """

    def __init__(self, images: Tensor, labels: Tensor, classes: Sequence[str] | int, part: str = 'all', held_out: int = 0,
                 part_seed: int = 0, size: int | None = None, shrink: int = 1):
        if part not in PARTS:
            raise ValueError(unknown('part', part, PARTS))
        chosen = torch.arange(len(labels))
        if part != 'all':
            held = balanced(labels, held_out, part_seed)
            chosen = held if part == 'val' else without(chosen, held)
        if size is not None:
            chosen = chosen[balanced(labels[chosen], size, part_seed + 1)]
        self.images, self.labels = images[chosen], labels[chosen]
        if shrink > 1:
            self.images = F.avg_pool2d(self.images.float(), shrink).round().byte()
        names = [str(index) for index in range(classes)] if isinstance(classes, int) else classes
        self.metainfo = dict(classes=tuple(names))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=self.images[index], labels=self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[dict]:
        return [dict(inputs=self.images[indices], labels=self.labels[indices])]


def balanced(labels: Tensor, size: int, seed: int) -> Tensor:
    """Indices of ``size`` samples, sorted, the same number of each class (one more of some where it does not divide).

    Raises:
        ValueError: where a class has too few.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, chosen = labels.unique(), []
    for place, label in enumerate(classes):
        members = (labels == label).nonzero()[:, 0]
        count = size // len(classes) + (place < size % len(classes))
        if count > len(members):
            raise ValueError(f'{size} images of {len(classes)} classes need {count} of each, but class {int(label)} has '
                             f'{len(members)}')
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def without(indices: Tensor, removed: Tensor) -> Tensor:
    keep = torch.ones(len(indices), dtype=torch.bool)
    keep[removed] = False
    return indices[keep]


def decode(content: bytes) -> np.ndarray:
    """A PNG or JPEG file as ``uint8 [H, W, 3]``, RGB."""
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError('an image cannot be decoded')
    return image[..., ::-1]


def existing(path: str | Path) -> Path:
    if not Path(path).exists():
        raise FileNotFoundError(f'the images {str(path)!r} do not exist: set data_root in the config to where they lie, or '
                                'use --cfg-options train_dataloader.dataset.path=... (and the same for val and test)')
    return Path(path)


@lru_cache(maxsize=4)
def read_parquet(path: Path, image: str, label: str) -> tuple[Tensor, Tensor]:
    import pyarrow.parquet as parquet
    table = parquet.read_table(path, columns=[image, label])
    contents = table[image].combine_chunks().field('bytes')
    images = np.stack([decode(content.as_buffer()) for content in contents])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(table[label].to_numpy().copy())


@DATASETS.register_module()
class ParquetImages(InMemoryDataset):
    """A parquet file of compressed images of one size, in the schema of the Hugging Face hub: ``img: {bytes, path}, label``.

    Args:
        path: the file.
        image: name of the column of images.
        label: name of the column of labels.
        classes: names, or how many there are.
        the others: see :class:`InMemoryDataset`.

    Raises:
        FileNotFoundError: without the file.
    """

    @checked_arguments
    def __init__(self, path: str, image: str = 'img', label: str = 'label', classes: Sequence[str] | int = CIFAR10,
                 part: str = 'all', held_out: int = 0, part_seed: int = 0, size: int | None = None, shrink: int = 1):
        super().__init__(*read_parquet(existing(path), image, label), classes, part, held_out, part_seed, size, shrink)


@DATASETS.register_module()
class CifarBinary(InMemoryDataset):
    """CIFAR's own binary version: records of ``label bytes``, then 3072 pixels, red, green, blue.

    Args:
        path: folder of the files.
        files: their names; default: the five training batches of CIFAR-10.
        label_bytes: 1 for CIFAR-10, 2 for CIFAR-100 (the last counts).
        classes: names, or how many there are.
        the others: see :class:`InMemoryDataset`.

    Raises:
        FileNotFoundError: without a file. ValueError: for a file that does not consist of whole records.
    """

    @checked_arguments
    def __init__(self, path: str, files: Sequence[str] = tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
                 label_bytes: int = 1, classes: Sequence[str] | int = CIFAR10, part: str = 'all', held_out: int = 0,
                 part_seed: int = 0, size: int | None = None, shrink: int = 1):
        records, length = [], label_bytes + 3072
        for name in files:
            content = np.fromfile(existing(Path(path) / name), np.uint8)
            if len(content) % length:
                raise ValueError(f'{name} has {len(content)} bytes, which are no whole records of {length}')
            records.append(content.reshape(-1, length))
        records = np.concatenate(records)
        labels = torch.from_numpy(records[:, label_bytes - 1].astype(np.int64))
        images = torch.from_numpy(records[:, label_bytes:].reshape(-1, 3, 32, 32))
        super().__init__(images, labels, classes, part, held_out, part_seed, size, shrink)


@DATASETS.register_module()
class DigitImages(InMemoryDataset):
    """The 1 797 handwritten digits of scikit-learn, 8x8, grey: no download, trained in seconds.

    Args:
        test: the 360 test images, or the other 1 437.
        upscale: pixels are repeated that many times.
        the others: see :class:`InMemoryDataset`.
    """

    @checked_arguments
    def __init__(self, test: bool = False, upscale: int = 1, part: str = 'all', held_out: int = 0, part_seed: int = 0,
                 size: int | None = None, shrink: int = 1):
        pixels, labels = load_digit_images()
        images = torch.from_numpy((255 * pixels).round().astype(np.uint8))[:, None]
        images = images.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3)
        labels = torch.from_numpy(labels.astype(np.int64))
        tests = balanced(labels, 360, seed=20)
        chosen = tests if test else without(torch.arange(len(labels)), tests)
        super().__init__(images[chosen], labels[chosen], 10, part, held_out, part_seed, size, shrink)


def load_digit_images() -> tuple[np.ndarray, np.ndarray]:
    """``float32[1797, 8, 8]`` in [0, 1], ink is 1, and ``int[1797]``.

    Raises:
        ImportError: without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError('the digits set is made from sklearn.datasets.load_digits: install scikit-learn '
                          "(pip install scikit-learn, or the extra bnn_plugins[report])") from error
    source = load_digits()
    return (source.images / 16).astype(np.float32), source.target
