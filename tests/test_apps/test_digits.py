"""The digits set: the same bytes for the same recipe, no sample in two splits, boxes that fit, readable as COCO."""

import json
from dataclasses import asdict

import cv2
import numpy as np
import pytest

pytest.importorskip('sklearn')

from bnn_plugins.apps import digits
from bnn_plugins.apps.digits import DigitsRecipe, make_digits, overlap, read_recipe

RECIPE = DigitsRecipe(train=40, val=6, test=10)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return make_digits(tmp_path_factory.mktemp('digits') / 'set', RECIPE)


def annotations(folder, split):
    return json.loads((folder / 'annotations' / f'{split}.json').read_text())


def test_same_recipe_same_bytes(made, tmp_path):
    again = make_digits(tmp_path, RECIPE)
    files = sorted(path.relative_to(made) for path in made.rglob('*') if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob('*') if path.is_file())
    assert len(files) == 40 + 6 + 10 + 3
    assert all((made / file).read_bytes() == (again / file).read_bytes() for file in files)
    other = make_digits(tmp_path / 'other', DigitsRecipe(seed=1, train=40, val=6, test=10))
    assert (other / 'train/00000.png').read_bytes() != (made / 'train/00000.png').read_bytes()


def test_splits_share_no_sample():
    _, labels = digits.load_digit_images()
    parts = digits.split_source(labels, seed=0)
    assert sorted(index for part in parts.values() for index in part) == list(range(1797))
    assert all(set(labels[part]) == set(range(10)) for part in parts.values())


def test_annotations_name_samples_of_their_split(made):
    _, labels = digits.load_digit_images()
    for split, part in digits.split_source(labels, seed=0).items():
        for annotation in annotations(made, split)['annotations']:
            assert annotation['source_id'] in part
            assert annotation['category_id'] == labels[annotation['source_id']]


@pytest.mark.parametrize('split', ['train', 'val', 'test'])
def test_boxes_fit(made, split):
    coco = annotations(made, split)
    boxes = {image['id']: [] for image in coco['images']}
    assert len(boxes) == getattr(RECIPE, split)
    for annotation in coco['annotations']:
        x, y, w, h = annotation['bbox']
        assert 0 <= x < x + w <= RECIPE.size
        assert 0 <= y < y + h <= RECIPE.size
        assert w >= 5
        assert h >= RECIPE.min_height * 0.7
        assert annotation['area'] == w * h
        assert all(overlap((x, y, w, h), box) <= RECIPE.max_overlap for box in boxes[annotation['image_id']])
        boxes[annotation['image_id']].append((x, y, w, h))
    assert all(1 <= len(found) <= RECIPE.max_digits for found in boxes.values())
    for image in coco['images']:
        assert cv2.imread(str(made / split / image['file_name'])).shape == (RECIPE.size, RECIPE.size, 3)


def test_overlap_is_a_share_of_the_smaller_box():
    assert overlap((0, 0, 10, 10), (8, 6, 4, 8)) == 2 * 4 / 32
    assert overlap((8, 6, 4, 8), (0, 0, 10, 10)) == 2 * 4 / 32
    assert overlap((0, 0, 4, 4), (1, 1, 2, 2)) == 1
    assert overlap((0, 0, 4, 4), (4, 0, 4, 4)) == overlap((0, 0, 4, 4), (5, 5, 1, 1)) == 0


def test_each_sample_is_drawn_before_any_is_drawn_again(tmp_path, monkeypatch):
    drawn = []

    def draw(digits, recipe, rng):
        drawn.extend(digits[:, 0, 0].astype(int).tolist())
        return np.zeros((4, 4, 3), np.uint8), [], []

    monkeypatch.setattr(digits, 'draw_canvas', draw)
    images, samples = np.arange(100)[:, None, None] * np.ones((1, 8, 8)), np.arange(30, 70)
    (tmp_path / 'annotations').mkdir()
    digits.write_split(tmp_path, 'train', RECIPE, images, np.zeros(100), samples, np.random.default_rng(0))
    assert len(drawn) > 3 * len(samples)
    for first in range(0, len(drawn) - len(samples), len(samples)):
        assert sorted(drawn[first:first + len(samples)]) == samples.tolist()


def test_digits_stand_out(made):
    """Each edge of a box touches ink, and ink differs from the background: here by the spread of grey levels in the box."""
    for annotation in annotations(made, 'test')['annotations']:
        x, y, w, h = annotation['bbox']
        grey = cv2.imread(str(made / 'test' / f'{annotation["image_id"]:05d}.png'), cv2.IMREAD_GRAYSCALE)[y:y + h, x:x + w]
        assert grey.max() - grey.min() > 40


def test_the_config_reads_it(made):
    pytest.importorskip('mmdet')
    from mmdet.utils import register_all_modules
    from mmengine.config import Config
    from mmengine.registry import DATASETS
    register_all_modules()
    cfg = Config.fromfile('configs/_base_/datasets/digits.py')
    for split in ('train', 'val', 'test'):
        cfg.merge_from_dict({f'{split}_dataloader.dataset.data_root': f'{made}/'})
        dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) == getattr(RECIPE, split)
        assert dataset.metainfo['classes'] == digits.CLASSES
        sample = dataset[0]
        assert tuple(sample['inputs'].shape) == (3, 128, 128)
        if split != 'train':
            want = sum(annotation['image_id'] == 0 for annotation in annotations(made, split)['annotations'])
            assert len(sample['data_samples'].instances) == want  # the evaluator takes the ground truth from there


def test_recipe_is_read_back(made, tmp_path):
    assert read_recipe(made) == asdict(RECIPE)
    assert read_recipe(tmp_path) is None
    assert make_digits(made, RECIPE) == made


def test_refuses_a_folder_with_another_set(made, tmp_path):
    with pytest.raises(FileExistsError, match=r"'seed': 0.*choose another folder"):
        make_digits(made, DigitsRecipe(seed=1))
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/test.json').write_text('{"images": []}')
    with pytest.raises(FileExistsError, match='not made by make_digits'):
        make_digits(tmp_path, RECIPE)


def test_refuses_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'cannot be written to .*file/set.*choose a folder'):
        make_digits(tmp_path / 'file/set', RECIPE)


def test_an_interrupted_set_counts_as_missing(tmp_path, monkeypatch):
    def stop(*args):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(digits, 'draw_canvas', stop)
        with pytest.raises(OSError, match='No space left on device'):
            make_digits(tmp_path, RECIPE)
    assert read_recipe(tmp_path) is None
    assert read_recipe(make_digits(tmp_path, RECIPE)) == asdict(RECIPE)


def test_says_that_scikit_learn_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'sklearn.datasets', None)
    with pytest.raises(ImportError, match='install scikit-learn'):
        make_digits(tmp_path / 'set', RECIPE)
    assert not (tmp_path / 'set').exists()
