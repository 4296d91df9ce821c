"""Datasets that say what is wrong with them."""

import json
import logging
from pathlib import Path

import torch
from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets import VOCDataset as MMDetVOCDataset
from mmengine.logging import print_log

from ...registry import DATASETS
from .transforms import UnreadableImage


class CheckedDatasetMixin:
    """Drops boxes of zero width or height and counts them; names a missing folder or list; can train without broken images.

    One such box makes the box loss infinite for the whole epoch, and nothing stops.

    Args:
        on_unreadable (str): ``'raise'`` (default) or ``'skip'``: in training, another image takes the place of one that cannot
            be read; :class:`bnn_plugins.engine.UnreadableImagesHook` names those at the end of the epoch. An evaluation
            without some of its images would be of another set: it raises in any case.

    Attributes:
        unreadable (Tensor): bool ``[len]``, which images could not be read in this epoch; workers write into the same memory.
    """

    def __init__(self, *args, on_unreadable: str = 'raise', **kwargs):
        if on_unreadable not in ('raise', 'skip'):
            raise ValueError(f"on_unreadable is 'raise' or 'skip', but got {on_unreadable!r}")
        self.on_unreadable = on_unreadable
        super().__init__(*args, **kwargs)

    def full_init(self) -> None:
        if not self._fully_initialized:
            super().full_init()
            self.unreadable = torch.zeros(len(self), dtype=torch.bool).share_memory_()

    def prepare_data(self, idx: int):
        try:
            return super().prepare_data(idx)
        except UnreadableImage:
            if self.on_unreadable == 'raise' or self.test_mode:
                raise
            self.unreadable[idx] = True
            return None  # the dataset draws another one

    def load_data_list(self) -> list[dict]:
        for what, path in (('annotation file', self.ann_file), *((f'folder {key!r}', path)
                                                                 for key, path in self.data_prefix.items() if path)):
            if path and '://' not in str(path) and not Path(path).exists():
                raise FileNotFoundError(
                    f'{type(self).__name__}: the {what} {str(path)!r} does not exist: set data_root (now {self.data_root!r}) '
                    'in the config to where the data lies, or use --cfg-options train_dataloader.dataset.data_root=... (and '
                    'the same for val and test)')
        self.dropped_boxes = 0
        data_list = super().load_data_list()
        if self.dropped_boxes:
            print_log(f'{type(self).__name__}: dropped {self.dropped_boxes} boxes of zero width or height in '
                      f'{self.ann_file}', logger='current')
        return data_list

    def parse_data_info(self, *args, **kwargs):
        info = super().parse_data_info(*args, **kwargs)
        kept = [i for i in info['instances'] if i['bbox'][2] > i['bbox'][0] and i['bbox'][3] > i['bbox'][1]]
        self.dropped_boxes += len(info['instances']) - len(kept)
        info['instances'] = kept
        return info


@DATASETS.register_module()
class VOCDataset(CheckedDatasetMixin, MMDetVOCDataset):
    """mmdet's ``VOCDataset`` for any folder in Pascal VOC layout; see :class:`CheckedDatasetMixin`.

    ``metainfo=dict(classes=..., palette=...)`` names the classes; ``data_prefix=dict(sub_data_root=...)`` the folder that
    holds ``JPEGImages`` and ``Annotations``.
    """


@DATASETS.register_module()
class CocoDataset(CheckedDatasetMixin, MMDetCocoDataset):
    """mmdet's ``CocoDataset``; see :class:`CheckedDatasetMixin`. Classes that the file does not have are named."""

    def load_data_list(self) -> list[dict]:
        data_list = super().load_data_list()
        if len(self.cat_ids) == len(self.metainfo['classes']):
            return data_list
        known = {category['name'] for category in json.loads(Path(self.ann_file).read_text())['categories']}
        absent = [name for name in self.metainfo['classes'] if name not in known]
        if not self.cat_ids:
            raise ValueError(f'{type(self).__name__}: {self.ann_file} has none of the classes {absent}, but {sorted(known)}: '
                             'set metainfo=dict(classes=...) in the config')
        print_log(f'{type(self).__name__}: {self.ann_file} has no {absent}', logger='current', level=logging.WARNING)
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        # The parent drops such boxes in silence; those without a box, too, if they are to be ignored.
        annotations = [annotation for annotation in raw_data_info['raw_ann_info'] if not annotation.get('ignore', False)]
        boxes = [annotation.get('bbox') or [0, 0, 0, 0] for annotation in annotations]
        self.dropped_boxes += sum(min(box[2:]) <= 0 for box in boxes)
        raw_data_info['raw_ann_info'] = [annotation for annotation in annotations if annotation.get('bbox')]
        return super().parse_data_info(raw_data_info)
