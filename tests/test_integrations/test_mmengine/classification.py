"""Small sets in the real formats, and short runs of every classification config on them."""

from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config

CONFIGS = sorted(Path(__file__).parents[3].joinpath('configs/classification').glob('*.py'))
TEACHER = dict(_delete_=True, type='bnn_plugins.BinaryClassifier', head=dict(num_classes=1000),
               backbone=dict(type='bnn_plugins.BNNCifarResNet', depth=8, base_channels=4, method='binaryconnect'))


def pictures(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``uint8 [N, size, size, 3]`` whose colour tells the class, and ten classes in turn."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    colours = np.random.default_rng(0).integers(0, 256, (10, 1, 1, 3))
    noise = rng.integers(-30, 31, (count, size, size, 3))
    return (colours[labels] + noise).clip(0, 255).astype(np.uint8), labels.astype(np.int64)


def write_parquet(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The schema of the Hugging Face hub; PNG, so that nothing is lost. Returns what was written."""
    import pyarrow
    from pyarrow import parquet
    images, labels = pictures(count, 32, seed)
    contents = [cv2.imencode('.png', image[..., ::-1])[1].tobytes() for image in images]
    table = pyarrow.table({'img': [dict(bytes=content, path='') for content in contents], 'label': labels})
    parquet.write_table(table, path)
    return images, labels


def write_folder(root: Path, classes: int, each: int, size: int) -> None:
    """ImageNet's layout: ``root/<class>/<image>.jpg``, wider than high."""
    images, _ = pictures(classes * each, size, 0)
    for index, image in enumerate(images):
        folder = root / f'n{index % classes:02}'
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f'{index}.jpg'), np.concatenate([image, image[:, :size // 2]], 1))


def make_sets(root: Path) -> Path:
    write_parquet(root / 'train.parquet', 80, 1)
    write_parquet(root / 'test.parquet', 40, 2)
    write_folder(root / 'imagenet/train', 4, 3, 40)
    write_folder(root / 'imagenet/val', 4, 2, 40)
    return root


def short_run(config: Path, sets: Path) -> dict:
    """``cfg_options``: two iterations on a small set; networks for ImageNet as thin as their method allows."""
    options = {'train_cfg.max_epochs': 1, 'train_cfg.val_begin': 9, 'train_dataloader.num_batch_per_epoch': 2,
               'train_dataloader.batch_size': 4, 'default_hooks.logger.interval': 1, 'log_level': 'WARNING',
               'default_hooks.checkpoint.interval': 9}
    if config.stem.endswith('cifar10'):
        options.update({f'{split}_dataloader.dataset.held_out': 20 for split in ('train', 'val')})
        options.update({f'{split}_dataloader.dataset.path': str(sets / f'{name}.parquet')
                        for split, name in (('train', 'train'), ('val', 'train'), ('test', 'test'))})
    if config.stem.endswith('imagenet'):
        options.update({'model.backbone.base_channels': 64 if config.stem.startswith('bnext') else 16})
        for split, name in (('train', 'train'), ('val', 'val'), ('test', 'val')):
            options.update({f'{split}_dataloader.dataset.path': str(sets / 'imagenet' / name),
                            f'{split}_dataloader.dataset.image_size': 32, f'{split}_dataloader.num_workers': 0,
                            f'{split}_dataloader.persistent_workers': False, f'{split}_dataloader.batch_size': 4})
        if 'bnext' in config.stem:
            options['model.backbone.blocks'] = [1, 2]
            options['model.backbone.out_indices'] = [1]
        if 'distill' in Config.fromfile(config).model:
            options['model.distill.teacher.model'] = TEACHER
    if config.stem.startswith('resnet110'):
        options['model.backbone.base_channels'] = 4
    return options
