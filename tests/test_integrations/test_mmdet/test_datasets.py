"""Datasets that say what is wrong: missing folders, unreadable images, boxes of no size."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmengine.dataset import RepeatDataset
from mmengine.registry import DATASETS, HOOKS, TRANSFORMS, init_default_scope
from torch.utils.data import DataLoader

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)

BCCD = Path('data/bccd/BCCD')
CLASSES = ('RBC', 'WBC', 'Platelets')
OBJECT = ('<object><name>RBC</name><difficult>0</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax>'
          '<ymax>{3}</ymax></bndbox></object>')


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmdet')


@pytest.fixture
def voc(tmp_path) -> Path:
    """Two images in Pascal VOC layout; the first has a box of width 0, the second one of height 0 and one of each kind."""
    boxes = {'a': [(10, 10, 30, 40), (5, 5, 5, 20)], 'b': [(1, 1, 9, 9), (4, 8, 20, 8), (20, 20, 40, 41)]}
    for folder in ('JPEGImages', 'Annotations'):
        (tmp_path / folder).mkdir()
    for name, values in boxes.items():
        cv2.imwrite(str(tmp_path / f'JPEGImages/{name}.jpg'), np.zeros((48, 64, 3), np.uint8))
        (tmp_path / f'Annotations/{name}.xml').write_text(
            '<annotation><size><width>64</width><height>48</height></size>' + ''.join(OBJECT.format(*v) for v in values) +
            '</annotation>')
    (tmp_path / 'list.txt').write_text('a\nb\n')
    return tmp_path


def build_voc(root: Path, **kwargs):
    return DATASETS.build(dict(type='bnn_plugins.VOCDataset', data_root=str(root), data_prefix=dict(sub_data_root=''),
                               metainfo=dict(classes=CLASSES), **(dict(ann_file='list.txt', pipeline=[]) | kwargs)))


def test_boxes_of_no_size_are_dropped_and_counted(voc, caplog):
    with caplog.at_level(logging.INFO):
        dataset = build_voc(voc)
    assert dataset.dropped_boxes == 2
    assert [len(dataset.get_data_info(i)['instances']) for i in range(2)] == [1, 2]


def test_boxes_of_no_size_in_coco_are_dropped_and_counted(tmp_path):
    (tmp_path / 'images').mkdir()
    boxes = [[1, 1, 10, 10], [5, 5, 0, 7], [5, 5, 7, 0], [2, 2, 4, 4]]
    annotations = [dict(id=i, image_id=0, category_id=0, bbox=box, area=box[2] * box[3], iscrowd=0)
                   for i, box in enumerate(boxes)]
    images = [dict(id=0, file_name='x.png', width=32, height=32)]
    (tmp_path / 'ann.json').write_text(json.dumps(dict(images=images, categories=[dict(id=0, name='RBC')],
                                                       annotations=annotations)))
    dataset = DATASETS.build(dict(type='bnn_plugins.CocoDataset', data_root=str(tmp_path), ann_file='ann.json',
                                  data_prefix=dict(img='images/'), metainfo=dict(classes=('RBC',)), pipeline=[]))
    assert dataset.dropped_boxes == 2
    assert len(dataset.get_data_info(0)['instances']) == 2


def coco_of(folder: Path, names, annotations, classes):
    (folder / 'images').mkdir()
    content = dict(images=[dict(id=0, file_name='a.jpg', width=64, height=48)], annotations=annotations,
                   categories=[dict(id=k, name=name) for k, name in enumerate(names)])
    (folder / 'ann.json').write_text(json.dumps(content))
    return DATASETS.build(dict(type='bnn_plugins.CocoDataset', data_root=str(folder), ann_file='ann.json', pipeline=[],
                               data_prefix=dict(img='images/'), metainfo=dict(classes=classes), filter_cfg=None))


def test_annotations_without_a_box(tmp_path):
    """As mmdet's own dataset: what is to be ignored needs no box; one without a box is counted as dropped."""
    common = dict(image_id=0, category_id=0, iscrowd=0, area=20)
    annotations = [dict(common, id=0, bbox=[1, 1, 9, 9]), dict(common, id=1, ignore=True), dict(common, id=2, bbox=[])]
    dataset = coco_of(tmp_path, ['RBC'], annotations, ('RBC',))
    assert [len(dataset.get_data_info(0)['instances']), dataset.dropped_boxes] == [1, 1]


def test_classes_that_the_file_does_not_have(tmp_path, monkeypatch):
    annotations = [dict(id=0, image_id=0, category_id=0, iscrowd=0, area=20, bbox=[1, 1, 9, 9])]
    (tmp_path / 'some').mkdir()
    sentence = r"ann.json has none of the classes \['cat', 'dog'\], but \['RBC', 'WBC'\]: set metainfo"
    with pytest.raises(ValueError, match=sentence):
        coco_of(tmp_path, ['RBC', 'WBC'], annotations, ('cat', 'dog'))
    said = []
    monkeypatch.setattr('bnn_plugins.integrations.mmdet.datasets.print_log', lambda text, **_: said.append(text))
    coco_of(tmp_path / 'some', ['RBC', 'WBC'], annotations, ('RBC', 'dog'))
    assert len(said) == 1
    assert said[0].endswith("ann.json has no ['dog']")


@pytest.mark.parametrize(('root', 'ann_file', 'missing'), [('nowhere', 'list.txt', 'nowhere'), ('.', 'no.txt', 'no.txt')])
def test_a_missing_folder_or_list_is_named(voc, root, ann_file, missing):
    with pytest.raises(FileNotFoundError, match=rf'{missing}.* does not exist: set data_root'):
        build_voc(voc / root, ann_file=ann_file)


@pytest.mark.parametrize('content', [None, b'', b'no image'], ids=['absent', 'empty', 'garbage'])
def test_an_unreadable_image_is_named(voc, content):
    path = voc / 'JPEGImages/a.jpg'
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    load = TRANSFORMS.build(dict(type='bnn_plugins.LoadImageFromFile'))
    with pytest.raises(OSError, match=r'a\.jpg.* cannot be read .*: restore the file, take it out of the annotation file'):
        load(build_voc(voc).get_data_info(0))


LOAD = [dict(type='bnn_plugins.LoadImageFromFile')]


@pytest.mark.parametrize('workers', [0, 2])
def test_training_without_an_unreadable_image(voc, workers, monkeypatch):
    """Mutation: without share_memory_(), the flags that workers set are lost."""
    (voc / 'JPEGImages/a.jpg').write_bytes(b'no image')
    dataset = build_voc(voc, on_unreadable='skip', pipeline=LOAD)
    repeated = RepeatDataset(dataset, times=2)
    loader = DataLoader(repeated, 2, num_workers=workers, collate_fn=list)
    runner = SimpleNamespace(train_dataloader=loader)
    hook = HOOKS.build(dict(type='bnn_plugins.UnreadableImagesHook'))
    said = []
    monkeypatch.setattr('bnn_plugins.engine.unreadable.print_log', lambda text, **_: said.append(text))
    for epoch in (1, 2):
        assert [Path(sample['img_path']).name for batch in loader for sample in batch] == ['b.jpg'] * 4
        hook.after_train_epoch(runner)
        hook.after_train_epoch(runner)
        assert said == [f'left 1 image that cannot be read out of this epoch: {voc}/JPEGImages/a.jpg'] * epoch


def test_unreadable_images_stop_by_default_and_in_an_evaluation(voc):
    (voc / 'JPEGImages/a.jpg').write_bytes(b'no image')
    for options in (dict(), dict(on_unreadable='raise'), dict(on_unreadable='skip', test_mode=True)):
        with pytest.raises(OSError, match=r"a\.jpg.* cannot be read .*: restore .* on_unreadable='skip'"):
            build_voc(voc, pipeline=LOAD, **options)[0]
    with pytest.raises(ValueError, match=r"on_unreadable is 'raise' or 'skip', but got 'drop'"):
        build_voc(voc, on_unreadable='drop')


@pytest.mark.skipif(not BCCD.is_dir(), reason=f'BCCD is not at {BCCD}')
def test_bccd_has_two_boxes_of_no_size():
    splits = [build_voc(BCCD, ann_file=f'ImageSets/Main/{split}.txt') for split in ('train', 'val', 'test')]
    assert sum(split.dropped_boxes for split in splits) == 2
