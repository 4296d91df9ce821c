"""Clips made of photographs, batches of whole clips, detectors with LSTMs trained on them through the real tools."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler
from test_integrations.conftest import REPOSITORY, as_arguments
from test_integrations.test_mmengine.test_train import run_tool

import bnn_plugins  # noqa: F401  (before mmdet)
from bnn_plugins.apps.clips import ClipsRecipe, make_clips, tracked
from bnn_plugins.integrations.mmdet.video import ClipBatchSampler, ClipDataset
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import test as evaluate

COLOURS = {'RBC': (60, 60, 220), 'WBC': (220, 60, 60), 'Platelets': (60, 220, 60)}
RECIPE = ClipsRecipe(length=4, size=64, shrink=1.0, noise=0.0)
XML = ('<annotation><size><width>{0}</width><height>{1}</height><depth>3</depth></size>{2}</annotation>')
OBJECT = ('<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>'
          '</bndbox></object>')
NECKS = {'retinanet_bnn-r18_fpn-bilstm_bccd': 'voc', 'retinanet_bnn-sequencer18_fpn_bccd': 'voc',
         'retinanet_bnn-r18_fpn_bccd-clips': 'clips', 'retinanet_bnn-r18_fpn-convlstm_bccd-clips': 'clips'}
LONG = ('retinanet_bnn-sequencer18_fpn_bccd', 'retinanet_bnn-r18_fpn-convlstm_bccd-clips')


@pytest.fixture(scope='session')
def voc(tmp_path_factory) -> Path:
    """Six photographs of 96x80 with two or three coloured boxes, in BCCD's layout."""
    root = tmp_path_factory.mktemp('voc')
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(6):
        image, objects = np.full((80, 96, 3), 200, np.uint8), []
        for name, colour in list(COLOURS.items())[:2 + index % 2]:
            x, y, width, height = *rng.integers(0, 50, 2), *rng.integers(16, 28, 2)
            image[y:y + height, x:x + width] = colour
            objects.append(OBJECT.format(name, x + 1, y + 1, x + width, y + height))
        cv2.imwrite(str(root / f'JPEGImages/{index}.jpg'), image)
        (root / f'Annotations/{index}.xml').write_text(XML.format(96, 80, ''.join(objects)))
    for split, names in (('train', '0123'), ('val', '4'), ('test', '5')):
        (root / f'ImageSets/Main/{split}.txt').write_text('\n'.join(names))
    return root


@pytest.fixture(scope='session')
def clips(voc, tmp_path_factory) -> Path:
    return make_clips(voc, tmp_path_factory.mktemp('clips'), RECIPE)


def content(clips, split='train'):
    return json.loads((clips / f'annotations/{split}.json').read_text())


def test_boxes_follow_their_objects(clips):
    """In every frame the middle of a box has the colour of its class; a tracked object moves by a few pixels at most."""
    found = content(clips)
    assert len(found['videos']) == 4
    assert [image['frame_id'] for image in found['images']] == [0, 1, 2, 3] * 4
    names = [category['name'] for category in found['categories']]
    images = {image['id']: image for image in found['images']}
    places = {}
    for annotation in found['annotations']:
        image = images[annotation['image_id']]
        x, y, width, height = annotation['bbox']
        assert 0 <= x < x + width <= 64
        assert 0 <= y < y + height <= 64
        assert annotation['area'] == width * height
        pixels = cv2.imread(str(clips / 'train' / image['file_name']))
        colours = np.array([COLOURS[name] for name in names])
        nearest = np.abs(colours - pixels[int(y + height / 2), int(x + width / 2)]).sum(1).argmin()
        others = [a['bbox'] for a in found['annotations'] if a['image_id'] == image['id'] and a is not annotation]
        if not any(ox < x + width and x < ox + ow and oy < y + height and y < oy + oh for ox, oy, ow, oh in others):
            assert nearest == annotation['category_id']
        if min(x, y) > 0 and max(x + width, y + height) < 64:
            places.setdefault((image['video_id'], annotation['instance_id']), []).append((image['frame_id'], x, y))
    speeds = [np.hypot(x - a, y - b) for track in places.values() for (f, a, b), (g, x, y) in pairwise(track) if g == f + 1]
    assert 0 < max(speeds) <= RECIPE.speed + 1.5


def test_the_same_recipe_gives_the_same_clips(voc, clips, tmp_path):
    again, other = (make_clips(voc, tmp_path / str(seed), replace(RECIPE, seed=seed)) for seed in (0, 1))
    assert content(again) == content(clips)
    name = content(clips)['images'][5]['file_name']
    assert (again / 'train' / name).read_bytes() == (clips / 'train' / name).read_bytes()
    assert content(other)['annotations'] != content(clips)['annotations']
    with pytest.raises(ValueError, match='does not fit into an image of 96x80: shrink less'):
        make_clips(voc, tmp_path / 'c', ClipsRecipe(size=160, shrink=1.0))
    with pytest.raises(FileNotFoundError, match='set data_root'):
        make_clips(tmp_path, tmp_path / 'd')


def test_boxes_that_leave_the_window():
    """Moved by the corner and cut; left out where less than ``min_visible`` of the area is inside, exactly that much stays."""
    recipe, corner = replace(RECIPE, size=10, min_visible=0.25), np.array([20, 30])
    boxes = np.array([[22, 33, 26, 35], [16, 32, 24, 36], [17, 27, 21, 31], [14, 32, 22, 36], [14, 32, 21.9, 36], [5, 5, 9, 9],
                      [28, 38, 32, 42]], float)
    found = dict(tracked(boxes, corner, recipe))
    assert {i: box.tolist() for i, box in found.items()} == {
        0: [2, 3, 6, 5], 1: [0, 2, 4, 6], 3: [0, 2, 2, 6], 6: [8, 8, 10, 10]}
    assert set(dict(tracked(boxes, corner, replace(recipe, min_visible=0.0)))) == {0, 1, 2, 3, 4, 6}, 'some of it must be seen'


def test_batches_are_whole_clips(clips):
    dataset = ClipDataset(data_root=f'{clips}/', ann_file='annotations/train.json', data_prefix=dict(img='train/'),
                          metainfo=dict(classes=tuple(COLOURS)), pipeline=[])
    sampler = DefaultSampler(dataset, shuffle=True, seed=0)
    batches = list(ClipBatchSampler(sampler, 8, 4))
    assert len(batches) == len(ClipBatchSampler(sampler, 8, 4)) == 2
    videos = []
    for batch in batches:
        frames = [(info['video_id'], info['frame_id']) for info in map(dataset.get_data_info, batch)]
        assert [frame for _, frame in frames] == [0, 1, 2, 3] * 2
        assert all(len({video for video, _ in frames[i:i + 4]}) == 1 for i in (0, 4))
        videos += [frames[0][0], frames[4][0]]
    assert sorted(videos) == [1, 2, 3, 4]
    assert [len(batch) for batch in ClipBatchSampler(sampler, 12, 4)] == [12, 4]
    assert (len(ClipBatchSampler(sampler, 12, 4)), len(ClipBatchSampler(sampler, 12, 4, drop_last=True))) == (2, 1)
    assert [len(batch) for batch in ClipBatchSampler(sampler, 12, 4, drop_last=True)] == [12]
    assert all(len(batch) == 2 for batch in ClipBatchSampler(sampler, 2, 2))
    with pytest.raises(ValueError, match='no multiple of their length 4'):
        ClipBatchSampler(sampler, 6, 4)
    with pytest.raises(ValueError, match='no 5 frames of one video'):
        ClipBatchSampler(sampler, 5, 5)


def options(config: str, voc: Path, clips: Path) -> dict:
    """Two iterations on the small sets, with a thin network."""
    kind, model = NECKS[config], 'model.detector' if 'convlstm' in config else 'model'
    root = f'{voc if kind == "voc" else clips}/'
    changes = {f'{split}_dataloader.dataset.data_root': root for split in ('train', 'val', 'test')}
    changes.update({f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')})
    changes.update({'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 9, 'param_scheduler.1.T_max': 1,
                    'default_hooks.logger.interval': 1, f'{model}.backbone.base_channels': 8,
                    f'{model}.bbox_head.feat_channels': 16, f'{model}.bbox_head.stacked_convs': 1})
    neck = f'{model}.neck.0' if 'lstm' in config else f'{model}.neck'
    changes[f'{neck}.in_channels'] = [8, 16, 32, 64]
    if kind == 'voc':
        changes.update({'train_dataloader.batch_size': 2, 'train_dataloader.dataset.pipeline.2.scale': (96, 80),
                        'train_dataloader.dataset.pipeline.3.crop_size': (64, 64),
                        'test_dataloader.dataset.pipeline.1.scale': (96, 80)})
    else:
        changes.update({'train_dataloader.batch_size': 8, 'train_dataloader.batch_sampler.length': 4,
                        'test_dataloader.dataset.pipeline.1.scale': (64, 64)})
    return changes


@pytest.mark.parametrize('config', [pytest.param(name, marks=[pytest.mark.nightly] * (name in LONG)) for name in NECKS])
def test_config_trains_evaluates_and_packs(config, voc, clips, tmp_path, monkeypatch):
    path, changes = str(REPOSITORY / f'configs/detection/{config}.py'), options(config, voc, clips)
    run_tool(monkeypatch, path, '--work-dir', tmp_path, '--cfg-options', *as_arguments(changes))
    checkpoint = str(tmp_path / 'epoch_1.pth')
    weights = torch.load(checkpoint, weights_only=False)
    assert weights['meta']['iter'] == 2
    assert all(value.isfinite().all() for value in weights['state_dict'].values())
    if 'lstm' not in config:
        return
    test_only = {key: value for key, value in changes.items() if not key.startswith('train_cfg')}
    latent = evaluate(path, checkpoint, str(tmp_path / 'test'), cfg_options=dict(test_only))
    file = str(pack_checkpoint(path, checkpoint, str(tmp_path / 'packed.safetensors'), dict(test_only)))
    packed = evaluate(path, file, str(tmp_path / 'packed'), cfg_options=dict(test_only), fuse=False)
    assert packed == latent


def test_clip_detector_says_the_frames(clips, tmp_path):
    """The number of each frame reaches the neck, in the order of the batch, and state flows through a test run."""
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    cfg = Config.fromfile(REPOSITORY / 'configs/detection/retinanet_bnn-r18_fpn-convlstm_bccd-clips.py')
    model = MODELS.build(cfg.model).eval()
    neck = model.detector.neck[1]
    said = []
    neck.set_frames, original = lambda frames: (said.append(frames), original(frames)), neck.set_frames
    samples = [DetDataSample(metainfo=dict(video_id=3, frame_id=i, img_shape=(64, 64), ori_shape=(64, 64),
                                           scale_factor=(1.0, 1.0))) for i in range(2)]
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64), samples, mode='predict')
        assert neck.before == (3, 1)
        assert len(neck.states) == 4
        model(torch.randn(1, 3, 64, 64), [DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64),
                                                                      scale_factor=(1.0, 1.0)))], mode='predict')
    assert said == [[(3, 0), (3, 1)], None]
    assert neck.before is None
