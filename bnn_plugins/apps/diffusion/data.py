"""Images to train on: scikit-learn's digits (no download), a folder, a parquet file, pairs for super-resolution."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from ...binarize.lookup import check_keys, unknown
from .lazy import LazyImages, to_float

DECODED_BYTES = 1 << 31  # a set that takes more is read when it is wanted
SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp', '.webp')


class Images(Dataset):
    """Float images ``[C, H, W]`` in [-1, 1], as ``dict(input=...)`` with ``label`` and ``condition`` where there are some.

    Everything is decoded once: the sets that a machine without an accelerator trains on fit into memory.

    Args:
        images: uint8 ``[N, C, H, W]``.
        labels: int64 ``[N]`` or ``None``.
        conditions: uint8 ``[N, C, H, W]`` or ``None``.
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None, conditions: Tensor | None = None):
        self.images, self.labels, self.conditions = images, labels, conditions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        item = {'input': to_float(self.images[index])}
        if self.labels is not None:
            item['label'] = self.labels[index]
        if self.conditions is not None:
            item['condition'] = to_float(self.conditions[index])
        return item

    def split(self, holdout: float) -> tuple['Images', 'Images']:
        """``(training, held-out)``, always the same for the same images."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        count = round(len(self) * holdout)
        return self.subset(order[count:]), self.subset(order[:count])

    def subset(self, index: Tensor) -> 'Images':
        return Images(self.images[index], *(None if t is None else t[index] for t in (self.labels, self.conditions)))


def to_uint8(image: Tensor) -> Tensor:
    """[-1, 1] to 0..255, as pipelines write images."""
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def split(data: Images | LazyImages, holdout: float) -> tuple[Images | LazyImages, Images]:
    """``(training, held-out)``; of a set that is not in memory the first rows are held out, at most 1024."""
    if isinstance(data, Images):
        return data.split(holdout)
    rest, images, labels = data.split_first(min(round(len(data) * holdout), 1024))
    return rest, Images(images, None if None in labels else torch.tensor(labels))


def build_dataset(spec: dict, resolution: int, center_crop: bool = False) -> Images | LazyImages:
    """``dict(type='digits' | 'imagefolder' | 'parquet' | 'sr_folders', ...)`` to images of ``resolution`` pixels.

    Folders and parquet files whose pixels take more than 2 GiB are read and decoded when they are wanted.

    Raises:
        FileNotFoundError: when a path does not exist or holds no image. ValueError: for an unknown type or key.
    """
    spec = dict(spec)
    kind = spec.pop('type', None)
    if kind not in SOURCES:
        raise ValueError(unknown('type of dataset', str(kind), SOURCES))
    source, keys = SOURCES[kind]
    check_keys(f'key of the dataset {kind}', spec, keys)
    return source(resolution=resolution, center_crop=center_crop, **spec)


def digits(resolution: int, center_crop: bool) -> Images:
    """The 1797 handwritten digits of scikit-learn, grey, 8x8 (enlarged where ``resolution`` is more)."""
    from sklearn.datasets import load_digits
    data = load_digits()
    images = torch.from_numpy(data.images / 16 * 255).round().to(torch.uint8)[:, None]
    if resolution != 8:
        images = torch.nn.functional.interpolate(images, resolution, mode='nearest')
    return Images(images, torch.from_numpy(data.target).long())


def imagefolder(resolution: int, center_crop: bool, path: str, channels: int = 3) -> Images | LazyImages:
    """All pictures below a folder; one folder per class, where there are several, gives labels. Transparent is white."""
    files = picture_files(path)
    names = sorted({file.parent.name for file in files})
    if len(files) * channels * resolution ** 2 > DECODED_BYTES:
        return LazyImages([1] * len(files), lambda group: [files[group]], lambda file: (
            to_tensor(Image.open(file), resolution, center_crop, channels),
            names.index(file.parent.name) if len(names) > 1 else None))
    images = torch.stack([to_tensor(Image.open(file), resolution, center_crop, channels) for file in files])
    return Images(images, torch.tensor([names.index(file.parent.name) for file in files]) if len(names) > 1 else None)


def parquet(resolution: int, center_crop: bool, path: str, image_column: str = 'img', label_column: str | None = 'label',
            limit: int | None = None) -> Images | LazyImages:
    """A parquet file, or a folder of them, with a column of ``{bytes: encoded picture}``, the schema of image sets on the
    Hugging Face hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    files = sorted(Path(path).rglob('*.parquet')) if Path(path).is_dir() else [Path(path)]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f'there is no parquet file {path}')
    columns = [column for column in (image_column, label_column) if column is not None]
    metadata = [pq.read_metadata(file) for file in files]
    for file, found in zip(files, metadata, strict=True):
        names = found.schema.to_arrow_schema().names
        for column in columns:
            if column not in names:
                raise ValueError(f'{file}: {unknown("column", column, names)}')
    if limit is None and sum(found.num_rows for found in metadata) * 3 * resolution ** 2 > DECODED_BYTES:
        groups = [(file, index) for file, found in zip(files, metadata, strict=True) for index in range(found.num_row_groups)]
        return LazyImages(
            [found.row_group(index).num_rows for found in metadata for index in range(found.num_row_groups)],
            lambda group: pq.ParquetFile(groups[group][0]).read_row_group(groups[group][1], columns).to_pylist(),
            lambda row: (to_tensor(Image.open(io.BytesIO(row[image_column]['bytes'])), resolution, center_crop, 3),
                         label_column and row[label_column]))
    table = pa.concat_tables([pq.read_table(file, columns=columns) for file in files]).slice(0, limit)
    images = [to_tensor(Image.open(io.BytesIO(row['bytes'])), resolution, center_crop, 3)
              for row in table[image_column].to_pylist()]
    labels = None if label_column is None else torch.tensor(table[label_column].to_pylist())
    return Images(torch.stack(images), labels)


def sr_folders(resolution: int, center_crop: bool, low: str, high: str, limit: int | None = None) -> Images:
    """Pairs for super-resolution: the same file names in two folders. The condition is the small one, enlarged bicubically."""
    files = picture_files(high)[:limit]
    missing = [file.name for file in files if not (Path(low) / file.name).is_file()]
    if missing:
        raise FileNotFoundError(f'{low} lacks {len(missing)} pictures of {high}, such as {missing[0]}')
    big = torch.stack([to_tensor(Image.open(file), resolution, center_crop, 3) for file in files])
    small = [on_white(Image.open(Path(low) / file.name), 3) for file in files]
    enlarged = torch.stack([as_tensor(image.resize((resolution, resolution), Image.Resampling.BICUBIC)) for image in small])
    return Images(big, conditions=enlarged)


SOURCES = {
    'digits': (digits, ()),
    'imagefolder': (imagefolder, ('path', 'channels')),
    'parquet': (parquet, ('path', 'image_column', 'label_column', 'limit')),
    'sr_folders': (sr_folders, ('low', 'high', 'limit')),
}


def picture_files(path: str) -> list[Path]:
    if not Path(path).is_dir():
        raise FileNotFoundError(f'there is no folder {path}: give one with pictures')
    files = sorted(file for file in Path(path).rglob('*') if file.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(f'{path} holds no picture ({", ".join(SUFFIXES)})')
    return files


def on_white(image: Image.Image, channels: int) -> Image.Image:
    """The picture as a viewer shows it: turned as its EXIF says, 16 bits of grey as 8, white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith('I'):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ('RGBA', 'LA', 'P'):
        image = image.convert('RGBA')
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image)
    return image.convert({1: 'L', 3: 'RGB'}[channels])


def as_tensor(image: Image.Image) -> Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array[None].copy() if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def to_tensor(image: Image.Image, resolution: int, center_crop: bool, channels: int) -> Tensor:
    """uint8 ``[C, resolution, resolution]``: the shorter side is resized, then the middle is cut; else both sides."""
    image = on_white(image, channels)
    if image.size != (resolution, resolution):
        if center_crop:
            scale = resolution / min(image.size)
            image = image.resize([max(resolution, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
            left, top = ((side - resolution) // 2 for side in image.size)
            image = image.crop((left, top, left + resolution, top + resolution))
        else:
            image = image.resize((resolution, resolution), Image.Resampling.BILINEAR)
    return as_tensor(image)
