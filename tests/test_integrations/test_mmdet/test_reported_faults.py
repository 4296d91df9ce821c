"""What users of mmdet reported of whole detectors, one test of each kind."""

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import load_file
from torch import nn

from benchmarks.zoo.mmdet_models import case, small_networks
from bnn_plugins import binarize_, pack_, save_packed
from bnn_plugins.layers import BinaryLayer


@pytest.fixture(autouse=True)
def small():
    init_default_scope('mmdet')
    with small_networks():
        yield


def detector(family: str) -> nn.Module:
    return case(family, 'whole', {}).float_model()


@pytest.mark.parametrize(('family', 'layer', 'reason'), [
    ('tood', 'bbox_head.cls_decomp.reduction_conv.conv', 'TaskDecomposition uses its weight without calling it'),
    ('dab_detr', 'decoder.query_scale.layers.1', 'its sign would always be +1: MLP calls a ReLU before it as a function')])
def test_why_a_layer_stays_float(family, layer, reason):
    """Mutations: without the weights that are read; without functions that are ReLUs."""
    reasons = {row.name: row.reason for row in binarize_(detector(family), 'bireal').rows if not row.binary}
    assert reasons[layer] == reason


def test_extra_levels_behind_a_relu():
    """Mutation: the layer is binary, and the first step refuses it."""
    neck = MODELS.build(dict(type='FPN', in_channels=[8, 8, 8], out_channels=8, add_extra_convs='on_output', num_outs=5,
                             relu_before_extra_convs=True))
    reasons = {row.name: row.reason for row in binarize_(neck, 'bireal').rows}
    assert reasons['fpn_convs.3.conv'] == 'default', 'behind a convolution'
    assert reasons['fpn_convs.4.conv'] == 'its sign would always be +1: FPN calls a ReLU before it as a function'
    outs = neck.train()([torch.randn(2, 8, 32 >> k, 32 >> k) for k in range(3)])
    sum(out.sum() for out in outs).backward()


def test_relus_between_real_layers_stay():
    """Mutation: all ReLUs of a model that has binary layers."""
    real = {'backbone.layer4.*': 'float', 'neck.lateral_convs.3.*': 'float'}
    for rules, kept in ({}, 'roi_head.bbox_head.relu'), (real, 'backbone.layer4.0.relu'):
        model = detector('faster_rcnn')
        report = binarize_(model, dict(method='bireal', rules=rules))
        assert kept not in report.replaced
        assert type(model.get_submodule(kept)) is nn.ReLU
        assert 'backbone.layer3.0.relu' in report.replaced


def test_weights_are_initialised_behind_binarize():
    """YOLACT's own initialisation meets a PReLU where a ReLU was. Mutation: one parameter of two dimensions."""
    model = detector('yolact')
    report = binarize_(model, dict(method='bireal', act='prelu'))
    assert any(name.startswith('mask_head.protonet') for name in report.replaced)
    model.init_weights()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_an_efficientnet_becomes_binary():
    backbone = MODELS.build(dict(type='EfficientNet', arch='b0', out_indices=(3, 4)))
    report = binarize_(backbone, 'bireal')
    assert len(report.binary) > 10
    assert {row.kind for row in report.binary} == {'Conv2dAdaptivePadding'}
    backbone.train()
    for out in backbone(torch.randn(2, 3, 64, 64)):
        assert out.isfinite().all()


@pytest.mark.parametrize('family', ['rtmdet', 'nas_fpn'])
def test_a_shared_layer_is_written_once(family, tmp_path):
    """Mutation: each name of a layer that levels share has a tensor of its own, and packed files are larger."""
    model = detector(family)
    binarize_(model, 'bireal')
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, BinaryLayer):
            names.setdefault(id(module), []).append(name)
    shared = [group for group in names.values() if len(group) > 1]
    assert len(shared) > 1 or family == 'nas_fpn'
    size = sum(4 * parameter.numel() for parameter in model.parameters())
    path = save_packed(pack_(model), tmp_path / 'packed.safetensors')
    written = load_file(path)
    for group in shared:
        assert sum(f'{name}.weight_bits' in written for name in group) == 1
    assert path.stat().st_size < size / 2
