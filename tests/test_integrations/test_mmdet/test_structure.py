"""What stays real in whole detectors, against the graph of autograd: it knows nothing of the rules or of our data flow."""

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.hub import get_config
from mmengine.registry import MODELS, init_default_scope

from benchmarks.zoo.mmdet_models import CONFIGS, case, small_networks, without_checkpoints
from benchmarks.zoo.structure import must_be_real
from bnn_plugins import binarize_

# A family each for: names of its own, a dynamic head, points, corner embeddings, deformable convolutions, DETR, regions.
FAMILIES = {
    'tood': {'bbox_head.tood_cls', 'bbox_head.tood_reg'},
    'solov2': {'mask_head.conv_kernel', 'mask_head.conv_cls'},
    'reppoints': {'bbox_head.reppoints_cls_out', 'bbox_head.reppoints_pts_init_out'},
    'ssd': {f'bbox_head.{kind}_convs.{k}.0' for kind in ('cls', 'reg') for k in range(6)},
    'deformable_detr': {'bbox_head.cls_branches.0', 'bbox_head.reg_branches.0.4'},
    'ms_rcnn': {'roi_head.mask_iou_head.fc_mask_iou', 'roi_head.bbox_head.fc_cls'},
}
# Features that are returned or averaged beside their way through the network.
FEATURES = {'ms_rcnn': {'neck.fpn_convs.0.conv', 'backbone.layer4.0.conv3'},
            'deformable_detr': {'decoder.layers.1.ffn.layers.1', 'encoder.layers.0.self_attn.output_proj'}}


@pytest.mark.parametrize('family', FAMILIES)
def test_what_only_the_loss_reads_stays_real(family):
    """Mutation: without 'output' in ``traced_role`` the names that are written down are all there is."""
    with small_networks():
        detector = case(family, 'whole', {})
        model = detector.float_model()
    real = must_be_real(model, detector.losses(model.train()))
    assert FAMILIES[family] & real, 'the walk found what we know of'
    with small_networks():
        report = binarize_(detector.float_model(), 'bireal')  # anew: some detectors keep tensors of their last forward pass
    assert report.traced == 'a forward pass decided, then names and classes'
    assert FAMILIES[family] <= {row.name for row in report.rows if not row.binary}
    binary = {row.name for row in report.binary}
    assert real & binary == set()
    assert FEATURES.get(family, set()) <= binary


# What bug reports name beside those above: predictions, positions and gates, in the words of each head.
NAMES = {
    'vfnet': {f'bbox_head.vfnet_{kind}' for kind in ('cls', 'reg', 'reg_refine')},
    'yolof': {'bbox_head.object_pred', 'bbox_head.cls_score'},
    'cornernet': {f'bbox_head.{corner}_{kind}.1.1.conv' for corner in ('tl', 'br') for kind in ('heat', 'off', 'emb')},
    'centripetalnet': {f'bbox_head.{corner}_dcn_offset.1.conv' for corner in ('tl', 'br')},
    'maskformer': {'panoptic_head.mask_embed.4', 'panoptic_head.cls_embed'},
    'solo': {'mask_head.conv_cls'},
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py': {f'bbox_head.rtm_{kind}.0' for kind in ('kernel', 'cls', 'reg')},
    'point_rend': {'roi_head.mask_head.fc_logits', 'roi_head.point_head.fc_logits'},
    'sabl': {'bbox_head.retina_bbox_reg', 'bbox_head.retina_bbox_cls', 'bbox_head.retina_cls'},
    'guided_anchoring': {'bbox_head.conv_loc', 'bbox_head.conv_shape', 'bbox_head.feature_adaption.conv_offset'},
    'yolact': {'mask_head.segm_branch.segm_conv', 'mask_head.protonet.10', 'bbox_head.conv_coeff'},
    'ddq': {'bbox_head.aux_cls_branches.0', 'bbox_head.aux_reg_branches.0.4', 'decoder.ref_point_head.layers.1'},
    'ddod': {'bbox_head.cls_convs.0.conv.conv_offset', 'bbox_head.atss_iou'},
    'clrnet': {'bbox_head.reg_layers', 'bbox_head.cls_layers', 'bbox_head.seg_decoder.conv'},
    'conditional_detr': {'decoder.ref_point_head.layers.1', 'bbox_head.fc_reg'},
    'dcnv2': {'backbone.layer2.0.conv2.conv_offset'},
    'empirical_attention/faster-rcnn_r50-attn1111_fpn_1x_coco.py': {
        f'backbone.layer3.0.gen_attention_block.appr_geom_fc_{side}' for side in 'xy'},
    'gcnet/mask-rcnn_r50-gcb-r4-c3-c5_fpn_1x_coco.py': {
        f'backbone.layer2.0.context_block.{name}' for name in ('channel_add_conv.0', 'channel_add_conv.3', 'conv_mask')},
}


@pytest.mark.parametrize('name', NAMES)
def test_names_of_predictions_positions_and_gates(name, monkeypatch):
    """Mutation: a rule set without names, and without the data flow."""
    family, _, config = name.partition('/')
    if config:
        monkeypatch.setitem(CONFIGS, family, config)
    with small_networks():
        report = binarize_(case(family, 'whole', {}).float_model(), 'bireal')
    real = {row.name: row.reason for row in report.rows if not row.binary}
    assert NAMES[name] <= real.keys()
    assert len(report.binary) > len(real) / 2, 'and not because nothing became binary'


def test_masks_of_positive_places():
    """In a small CondInst no place is positive, so that its masks have no loss: the whole network."""
    cfg = get_config('mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py').model
    without_checkpoints(cfg)
    init_default_scope('mmdet')
    report = binarize_(MODELS.build(cfg), 'bireal')
    assert report.traced == 'a forward pass decided, then names and classes'
    assert {'bbox_head.controller', 'mask_head.mask_feature_head.conv_pred'} <= {
        row.name for row in report.rows if not row.binary}


def test_a_backbone_whose_train_returns_nothing():
    """ResNeSt's, as all of mmdet's that freeze stages. Its split attention has one ReLU behind two layers, which only a
    forward pass sees before ``conv3``; its features are not those of a ReLU, for a binary neck. Mutations:
    ``model.train()(x)``; without ``Trace.returned``."""
    init_default_scope('mmdet')
    backbone = MODELS.build(dict(type='ResNeSt', depth=50, stem_channels=16, base_channels=8, out_indices=(3,)))
    report = binarize_(backbone, 'bireal')
    assert report.traced == 'a forward pass decided, then names and classes'
    assert 'layer2.0.conv2.relu' in report.replaced
    assert 'layer2.0.conv3' in {row.name for row in report.binary}
    backbone.train()
    (features,) = backbone(torch.randn(2, 3, 64, 64))
    assert features.min() < 0
