"""``--fuse-conv-bn`` of mmdet's benchmark: norms behind binary layers, also of filters without a weight."""

from pathlib import Path

import pytest
import torch
from torch import nn

from bnn_plugins.layers import BinaryConv2d
from bnn_plugins.models.backbones import BNNResNet

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmdet.utils.benchmark import InferenceBenchmark
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

CONFIG = Path(__file__).parents[3] / 'configs/detection/fcos_bnn-r18_fpn_bccd.py'


def test_a_detector_computes_the_same(tmp_path, monkeypatch):
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.set_default_dtype(torch.float64)  # rounding turns no sign behind a norm
        try:
            check(tmp_path, monkeypatch)
        finally:
            torch.set_default_dtype(torch.float32)


def check(tmp_path, monkeypatch):
    cfg = Config.fromfile(CONFIG)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, BinaryConv2d):
            module.weight.data[3] = 0
        elif isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                module.weight.data.normal_()
                module.weight.data[:2] = torch.tensor([-1.5, 0.0])
    model.backbone.bn1.weight.data.abs_()  # behind the maximum of a pooling, with which mmcv exchanges it
    torch.save(model.state_dict(), tmp_path / 'model.pth')
    monkeypatch.setattr(BaseModel, 'cuda', lambda self: self)
    benchmark = InferenceBenchmark.__new__(InferenceBenchmark)
    benchmark.cfg, benchmark.distributed = cfg, False
    plain, fused = (benchmark._init_model(str(tmp_path / 'model.pth'), is_fuse_conv_bn) for is_fuse_conv_bn in (False, True))
    binary = [module for module in fused.modules() if isinstance(module, BinaryConv2d)]
    assert sum(module.folded_scale is not None for module in binary) > 10
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for left, right in zip(fused.backbone(x), plain.backbone(x), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
            assert left.std() > 0


@pytest.mark.parametrize('deep_stem', [False, True])
def test_negative_weights_behind_a_pooling_are_refused(deep_stem):
    from mmcv.cnn import fuse_conv_bn
    backbone = BNNResNet(18, base_channels=8, deep_stem=deep_stem).eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = backbone(x)[0]
        backbone.norm_behind_pooling.weight[1] = -0.5
        assert not torch.equal(backbone(x)[0], before), 'it is the norm of the stem'
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), backbone)
    with pytest.raises(ValueError, match='the stem of BNNResNet pools between convolution and norm'):
        fuse_conv_bn(model)
    assert isinstance(model[0][1], nn.BatchNorm2d), 'nothing was folded'
