"""Datasets that say what is wrong with them."""

from pathlib import Path

from mmdet.datasets import CocoDataset as MMDetCocoDataset
from mmdet.datasets import VOCDataset as MMDetVOCDataset
from mmengine.logging import print_log

from ...registry import DATASETS


class CheckedDatasetMixin:
    """Drops boxes of zero width or height and counts them; names a missing folder or list.

    One such box makes the box loss infinite for the whole epoch, and nothing stops.
    """

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
    """mmdet's ``CocoDataset``; see :class:`CheckedDatasetMixin`."""

    def parse_data_info(self, raw_data_info: dict) -> dict:
        # The parent drops such boxes in silence.
        self.dropped_boxes += sum(min(annotation['bbox'][2:]) <= 0 for annotation in raw_data_info['raw_ann_info'])
        return super().parse_data_info(raw_data_info)
