"""A detector on BNNViT from its config: two iterations of training, then bits that give the same boxes."""

import pickle

import cv2
import numpy as np
import pytest
import torch

import bnn_plugins  # noqa: F401  (before mmdet: it provides what an mmcv without compiled operators lacks)
from bnn_plugins.deploy import PackedAttention
from bnn_plugins.integrations.mmengine import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import build_runner, load_config, train
from bnn_plugins.integrations.mmengine.run import test as evaluate

CONFIG = 'configs/detection/retinanet_bnn-vit_fpn_bccd.py'
ANNOTATION = """<annotation><size><width>320</width><height>240</height><depth>3</depth></size>
<object><name>{}</name><difficult>0</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
</object></annotation>"""


@pytest.fixture(scope='module')
def cells(tmp_path_factory):
    """Four discs of known place in the layout of BCCD."""
    root, rng = tmp_path_factory.mktemp('cells'), np.random.default_rng(0)
    for folder in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True)
    for index in range(4):
        x, y = rng.integers(60, 180, 2).tolist()
        image = np.full((240, 320, 3), 200, np.uint8)
        cv2.circle(image, (x, y), 40, (60, 40, 180), -1)
        cv2.imwrite(str(root / f'JPEGImages/{index}.jpg'), image)
        (root / f'Annotations/{index}.xml').write_text(ANNOTATION.format('RBC', x - 40, y - 40, x + 40, y + 40))
    for split in ('train', 'val', 'test'):
        (root / f'ImageSets/Main/{split}.txt').write_text('0\n1\n2\n3\n' if split == 'train' else '0\n')
    return root


def options(cells):
    return {'train_dataloader.batch_size': 2, 'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1,
            'log_level': 'WARNING', 'model.test_cfg.score_thr': 0.0, 'model.test_cfg.nms_pre': 20,
            **{f'{split}_dataloader.dataset.data_root': f'{cells}/' for split in ('train', 'val', 'test')},
            **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}}


@pytest.mark.nightly
def test_train_pack_evaluate(cells, tmp_path):
    runner = train(CONFIG, str(tmp_path), cfg_options=options(cells))
    assert runner.iter == 2
    assert all(p.isfinite().all() for p in runner.model.parameters())
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'epoch_1.pth'
    runner.cfg.dump(config)
    packed = pack_checkpoint(str(config), str(checkpoint), str(tmp_path / 'packed.safetensors'))
    found = {}
    for name, weights in (('latent', checkpoint), ('packed', packed)):
        out = tmp_path / f'{name}.pkl'
        evaluate(str(config), str(weights), work_dir=str(tmp_path / name), out=str(out), fuse=False)
        found[name] = [image['pred_instances'] for image in pickle.loads(out.read_bytes())]
    assert sum(len(instances['scores']) for instances in found['latent']) > 0
    for one, other in zip(found['latent'], found['packed'], strict=True):
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one[key], other[key])
    runner = build_runner(load_config(str(config), str(tmp_path / 'again'), {'load_from': str(packed)}))
    runner.load_or_resume()
    assert any(isinstance(module, PackedAttention) for module in runner.model.modules())
