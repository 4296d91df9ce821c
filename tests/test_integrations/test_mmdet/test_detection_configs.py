"""Each detector of the literature trains two iterations from its config, and packs exactly."""

import copy
from pathlib import Path

import pytest
import torch

from bnn_plugins import pack_  # before mmdet: the package provides what an mmcv without compiled operators lacks
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.integrations.mmengine.run import load_config, train
from bnn_plugins.layers import BinaryLayer
from bnn_plugins.registry import MODELS

from ..conftest import REPOSITORY
from .conftest import on_cells

DETECTION = REPOSITORY / 'configs/detection'
FLOAT = ['retinanet_r18_fpn_bccd', 'faster-rcnn_r18_fpn_bccd', 'yolox_tiny_bccd', 'rtmdet_tiny_bccd', 'fcos_r18_fpn_bccd',
         'retinanet_r18_pafpn_bccd']
BINARY = ['retinanet_bnn-r18-es2_fpn_bccd', 'retinanet_bidet-r18_fpn_bccd', 'retinanet_bidet-r18-es2_fpn_bccd',
          'retinanet_lwsdet-r18_fpn_bccd', 'retinanet_idadet-r18_fpn_bccd', 'retinanet_bnn-r18_pafpn_bccd',
          'faster-rcnn_bnn-r18_fpn_bccd', 'faster-rcnn_bnn-r18-es2_fpn_bccd', 'faster-rcnn_bidet-r18_fpn_bccd',
          'faster-rcnn_bidet-r18-es2_fpn_bccd', 'faster-rcnn_lwsdet-r18_fpn_bccd', 'faster-rcnn_idadet-r18_fpn_bccd',
          'fcos_bnn-r18_fpn_bccd', 'yolox_bnn-tiny_bccd', 'rtmdet_bnn-tiny_bccd']
def trained(name: str, cells: Path, work: Path, **more):
    return train(str(DETECTION / f'{name}.py'), str(work), cfg_options=on_cells(cells, **more))


@pytest.fixture(scope='module')
def twins(cells, tmp_path_factory) -> dict[str, dict]:
    """What teaches: float detectors after two iterations."""
    found = {}
    for name in ('retinanet_r18_fpn_bccd', 'faster-rcnn_r18_fpn_bccd'):
        work = tmp_path_factory.mktemp('twin')
        trained(name, cells, work)
        found[name] = {'float_twin.config': str(DETECTION / f'{name}.py'), 'float_twin.checkpoint': str(work / 'epoch_1.pth')}
    return found


DAILY = ('retinanet_lwsdet-r18_fpn_bccd', 'retinanet_idadet-r18_fpn_bccd', 'faster-rcnn_bidet-r18-es2_fpn_bccd')


@pytest.mark.parametrize('name', [name if name in DAILY else pytest.param(name, marks=pytest.mark.nightly) for name in BINARY])
def test_trains_and_packs_exactly(name, cells, twins, tmp_path):
    cfg = load_config(str(DETECTION / f'{name}.py'))
    more = twins[f'{name.partition("_")[0]}_r18_fpn_bccd'] if 'float_twin' in cfg else {}
    if 'bidet' in name:  # its losses from the first iteration on
        more = {'model.roi_head.bidet.start' if 'faster' in name else 'model.bbox_head.bidet.start': 0.0}
    runner = trained(name, cells, tmp_path, **more)
    losses = {key for key in runner.message_hub.log_scalars if key.startswith('train/loss_')}
    expected = {'bidet': {'train/loss_prior', 'train/loss_information'}, 'lwsdet': {'train/loss_lws'},
                'idadet': {'train/loss_ida'}}
    for word, names in expected.items():
        assert (names <= losses) == (word in name)
    model = MODELS.build(runner.cfg.model).eval()
    model.load_state_dict(torch.load(tmp_path / 'epoch_1.pth', weights_only=False)['state_dict'])
    images = torch.randn(1, 3, 64, 96)
    packed = pack_(copy.deepcopy(model))
    assert sum(isinstance(module, PackedLayer) for module in packed.modules()) > 5
    with torch.no_grad():
        for one, other in zip(model.extract_feat(images), packed.extract_feat(images), strict=True):
            assert torch.equal(one, other)


@pytest.mark.nightly
@pytest.mark.parametrize('name', FLOAT[2:])
def test_float_twins_train(name, cells, tmp_path):
    trained(name, cells, tmp_path)


@pytest.mark.parametrize('name', [*FLOAT, *BINARY])
def test_it_builds(name):
    """Mutation: a key that mmdet does not have, or a base that is gone."""
    from mmdet.registry import MODELS as MMDET
    cfg = load_config(str(DETECTION / f'{name}.py')).model
    with torch.device('meta'):
        MMDET.build(cfg)


@pytest.mark.nightly
def test_detr_with_a_binary_encoder():
    """Two steps on one image, a thin copy of the config; the rest of the layers stays real."""
    from mmdet.testing import demo_mm_inputs
    from mmengine.registry import DefaultScope
    cfg = load_config(str(DETECTION / 'detr_bnn-r50_150e_coco.py')).model
    thin = dict(backbone=dict(depth=18, init_cfg=None), neck=dict(in_channels=[512]), encoder=dict(num_layers=1),
                decoder=dict(num_layers=1))
    for part, changes in thin.items():
        cfg.module[part].update(changes)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg)
        binary = [name for name, module in model.named_modules() if isinstance(module, BinaryLayer)]
        assert binary
        assert all(name.startswith('encoder.') for name in binary)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        for _ in range(2):
            data = model.data_preprocessor(demo_mm_inputs(1, [[3, 64, 64]]), True)
            total, _ = model.parse_losses(model(**data, mode='loss'))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            assert total.isfinite()
        model.eval()
        packed = pack_(copy.deepcopy(model))
        with torch.no_grad():
            one, other = (net(**data, mode='tensor') for net in (model, packed))
    assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
