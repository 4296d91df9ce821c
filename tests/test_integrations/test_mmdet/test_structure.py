"""What stays real in whole detectors, against the graph of autograd: it knows nothing of the rules or of our data flow."""

import pytest
import torch

pytest.importorskip('mmdet')

from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from bnn_plugins import binarize_
from bnn_plugins.integrations.mmdet.probe import in_an_epoch, prepare_, samples

WEIGHTED = ('ConvolutionBackward', 'AddmmBackward', 'MmBackward', 'BmmBackward')
# A family each for: names of its own, a dynamic head, points, corner embeddings, deformable convolutions, DETR, regions.
CONFIGS = {
    'tood/tood_r50_fpn_1x_coco.py': {'bbox_head.tood_cls', 'bbox_head.tood_reg'},
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': {'bbox_head.controller',
                                                               'mask_head.mask_feature_head.conv_pred'},
    'solov2/solov2-light_r18_fpn_ms-3x_coco.py': {'mask_head.conv_kernel', 'mask_head.conv_cls'},
    'reppoints/reppoints-moment_r50_fpn_1x_coco.py': {'bbox_head.reppoints_cls_out', 'bbox_head.reppoints_pts_init_out'},
    'ssd/ssd300_coco.py': {f'bbox_head.{kind}_convs.{k}.0' for kind in ('cls', 'reg') for k in range(6)},
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': {'bbox_head.cls_branches.0', 'bbox_head.reg_branches.0.4'},
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py': {'roi_head.mask_iou_head.fc_mask_iou', 'roi_head.bbox_head.fc_cls'},
}
# Features that are returned or averaged beside their way through the network.
FEATURES = {'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py': {'neck.fpn_convs.0.conv', 'backbone.layer4.2.conv3'},
            'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': {'decoder.layers.5.ffn.layers.1',
                                                                      'encoder.layers.0.self_attn.output_proj'}}


def build(name):
    cfg = get_config(f'mmdet::{name}').model
    without_checkpoints(cfg)
    init_default_scope('mmdet')
    return MODELS.build(cfg)


def without_checkpoints(cfg):
    """Nothing is downloaded."""
    if isinstance(cfg, dict):
        if isinstance(cfg.get('init_cfg'), dict) and cfg['init_cfg'].get('type') == 'Pretrained':
            cfg['init_cfg'] = None
        for value in cfg.values():
            without_checkpoints(value)
    elif isinstance(cfg, list | tuple):
        for value in cfg:
            without_checkpoints(value)


def first_parameters(losses):
    """The weights that one meets first on the ways from the losses to the image."""
    found, seen, todo = set(), set(), [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [n for n, _ in node.next_functions if n is not None]
        weights = [parameter_of(n) for n in inputs] if node.name().startswith(WEIGHTED) else []
        if any(weight is not None for weight in weights):
            found |= {id(weight) for weight in weights if weight is not None and weight.ndim > 1}
        else:
            todo += inputs
    return found


def parameter_of(node):
    """The parameter behind a chain of views, ``None`` for a computed tensor."""
    while node is not None and not hasattr(node, 'variable'):
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    return node and node.variable


@pytest.mark.parametrize('name', CONFIGS)
def test_what_only_the_loss_reads_stays_real(name):
    """Mutation: without 'output' in ``traced_role`` the names that are written down are all there is."""
    model = build(name)
    report = binarize_(model, 'bireal')
    assert report.traced == 'a forward pass decided, then names and classes'
    reasons = {row.name: row.reason for row in report.rows if not row.binary}
    assert CONFIGS[name] <= reasons.keys()

    prepare_(model)
    model.train()
    size = (320, 320) if name.startswith('ssd') else (128, 160)
    with in_an_epoch():
        found = model(*samples(model, size, 1), 'loss')
    losses = [loss for value in found.values() for loss in (value if isinstance(value, list) else [value])]
    read = first_parameters([loss for loss in losses if isinstance(loss, torch.Tensor)])
    names = {parameter: name for name, parameter in model.named_parameters()}
    first = {name.removesuffix('.weight') for parameter, name in names.items() if id(parameter) in read}
    binary = {row.name for row in report.binary}
    assert CONFIGS[name] & first, 'the walk found what we know of'
    assert first & binary == set()
    assert FEATURES.get(name, set()) <= binary
