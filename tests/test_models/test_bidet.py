"""BiDet's losses against numpy, and in the heads of detectors."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from bnn_plugins import pack_, set_progress
from bnn_plugins.models.losses.bidet import SparseObjectPrior, information

ANCHORS = dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8, 16])
CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4)
ASSIGNER = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0, ignore_iof_thr=-1)
BODY = dict(
    data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
    backbone=dict(type='bnn_plugins.BNNResNet', depth=18, base_channels=8, num_stages=3, strides=(1, 2, 2),
                  dilations=(1, 1, 1), out_indices=(1, 2)),
    neck=dict(type='bnn_plugins.BNNFPN', in_channels=[16, 32], out_channels=16, num_outs=2))
BIDET = dict(score_threshold=0.0, top_k=20, iou_threshold=0.9)
ROI = dict(
    type='bnn_plugins.BiDetRoIHead', bidet=BIDET,
    bbox_roi_extractor=dict(type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=2, sampling_ratio=1),
                            out_channels=16, featmap_strides=[8, 16]),
    bbox_head=dict(type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=8, roi_feat_size=2, num_classes=3,
                   bbox_coder=CODER, loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss')))
RPN = dict(type='RPNHead', in_channels=16, feat_channels=16, anchor_generator=ANCHORS, bbox_coder=CODER,
           loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss'))
PROPOSALS = dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.9), min_bbox_size=0)
DENSE = dict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1, debug=False)
DETECTORS = {
    'SSD': dict(type='SingleStageDetector', bbox_head=dict(
        type='bnn_plugins.BiDetSSDHead', bidet=BIDET, in_channels=(16, 16), num_classes=3, bbox_coder=CODER,
        anchor_generator=dict(ANCHORS)), train_cfg=dict(DENSE, smoothl1_beta=1.0, neg_pos_ratio=3, sampler=dict(
            type='PseudoSampler')), **BODY),
    'RetinaNet': dict(type='RetinaNet', bbox_head=dict(
        type='bnn_plugins.BiDetRetinaHead', bidet=BIDET, in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3,
        anchor_generator=ANCHORS, bbox_coder=CODER), train_cfg=dict(DENSE, sampler=dict(type='PseudoSampler')), **BODY),
    'Faster R-CNN': dict(type='FasterRCNN', rpn_head=RPN, roi_head=ROI, train_cfg=dict(
        rpn=dict(DENSE, sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1,
                                     add_gt_as_proposals=False)),
        rpn_proposal=PROPOSALS,
        rcnn=dict(assigner=ASSIGNER, pos_weight=-1, debug=False, sampler=dict(
            type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True))),
        test_cfg=dict(rpn=PROPOSALS, rcnn=dict(score_thr=0.05, nms=PROPOSALS['nms'], max_per_img=10)), **BODY),
}


def kept(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Greedy non-maximum suppression."""
    result = []
    for i in np.argsort(-scores):
        for j in result:
            sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
            inner = np.prod(np.maximum(sides, 0))
            if inner / (np.prod(boxes[i, 2:] - boxes[i, :2]) + np.prod(boxes[j, 2:] - boxes[j, :2]) - inner) > threshold:
                break
        else:
            result.append(int(i))
    return result


@pytest.mark.parametrize('per_class', [False, True])
def test_sparse_object_prior(per_class):
    rng = np.random.default_rng(0)
    labels = [np.array([0, 2, 2]), np.array([1] * 9), np.array([], int)]  # the second image has more objects than detections
    corners = rng.uniform(0, 20, (3, 8, *([3] if per_class else []), 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 15, corners.shape)], -1)
    scores = rng.uniform(0, 1, (3, 8, 3))
    losses, gradient = [], np.zeros_like(scores)
    for image, label in enumerate(labels):
        for kind in sorted(set(label.tolist())):
            count, inside = (label == kind).sum(), np.flatnonzero(scores[image, :, kind] > 0.2)
            box, score = (boxes[image, :, kind] if per_class else boxes[image])[inside], scores[image, inside, kind]
            best = kept(box, score, 0.45)[:5]
            if len(best) > count:
                p = score[best] / score[best].sum()
                losses.append(-(p * np.log(p)).sum() / count)
                gradient[image, inside[best], kind] = -(np.log(p) + 1) / score[best].sum() / count
    assert len(losses) == 2
    prior = SparseObjectPrior(score_threshold=0.2, iou_threshold=0.45, top_k=5)
    x = torch.from_numpy(scores).requires_grad_()
    loss = prior(list(x), list(torch.from_numpy(boxes)), [torch.from_numpy(label) for label in labels])
    loss.backward()
    np.testing.assert_allclose(loss.item(), np.mean(losses), rtol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), gradient / len(losses), rtol=1e-10, atol=1e-12)


def test_nothing_is_surplus():
    x = torch.rand(4, 3, requires_grad=True)
    loss = SparseObjectPrior()([x], [torch.rand(4, 4)], [torch.zeros(4, dtype=torch.long)])
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_information():
    maps = [torch.randn(2, 3, 4, 5), torch.randn(2, 6, 2, 3)]
    expected = np.mean([(f.numpy()**2).mean() for f in maps])
    np.testing.assert_allclose(information(maps).item(), expected, rtol=1e-6)


def batch() -> dict:
    samples = []
    for boxes in ([[8.0, 8.0, 40.0, 40.0]], [[0.0, 0.0, 30.0, 30.0], [20.0, 20.0, 60.0, 60.0]]):
        size = (64, 64)
        sample = DetDataSample(metainfo=dict(img_shape=size, scale_factor=(1.0, 1.0), ori_shape=size, pad_shape=size))
        sample.gt_instances = InstanceData(bboxes=torch.tensor(boxes), labels=torch.arange(len(boxes)))
        samples.append(sample)
    return dict(inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8) for _ in samples], data_samples=samples)


def head_of(model):
    return model.roi_head if hasattr(model, 'roi_head') else model.bbox_head


@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_train(name):
    """From half of the training on, both losses are there, and reach what they shall change."""
    model = MODELS.build(ConfigDict(DETECTORS[name])).train()
    model.init_weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for progress in (0.49, 0.5):
        set_progress(model, progress)
        data = model.data_preprocessor(batch(), True)
        losses = model(**data, mode='loss')
        assert ({'loss_information', 'loss_prior'} <= losses.keys()) == (progress == 0.5)
        total, _ = model.parse_losses(losses)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        assert total.isfinite()
    data = model.data_preprocessor(batch(), True)
    for loss in ('loss_information', 'loss_prior'):
        optimizer.zero_grad()
        value = model(**data, mode='loss')[loss]
        value.backward()
        assert value > 0, loss
        assert model.backbone.conv1.weight.grad.any(), loss


@pytest.mark.parametrize(('switch', 'left'), [('information', 'loss_prior'), ('prior', 'loss_information')])
def test_switches(switch, left):
    cfg = DETECTORS['RetinaNet']
    model = MODELS.build(ConfigDict(cfg, bbox_head=dict(cfg['bbox_head'], bidet=dict(BIDET, start=0.0) | {switch: 0.0})))
    losses = model(**model.data_preprocessor(batch(), True), mode='loss')
    assert losses.keys() & {'loss_information', 'loss_prior'} == {left}
    with pytest.raises(ValueError, match="unknown key of bidet 'priors'"):
        MODELS.build(ConfigDict(cfg, bbox_head=dict(cfg['bbox_head'], bidet=dict(priors=0.1))))


@pytest.mark.parametrize('convs', [1, 2])
def test_binary_proposals(convs):
    """Mutations: a convolution that stays real, a prediction that does not, a width of another one."""
    binary = dict(method='bireal', pad_value=-1)
    head = MODELS.build(dict(RPN, type='bnn_plugins.BNNRPNHead', feat_channels=32, num_convs=convs, **binary))
    head.init_weights()
    kinds = {name: type(module).__name__ for name, module in head.named_modules() if 'Conv2d' in type(module).__name__}
    assert kinds == {**{f'rpn_conv.{i}.conv': 'BinaryConv2d' for i in range(convs)}, 'rpn_cls': 'Conv2d', 'rpn_reg': 'Conv2d'}
    maps = [torch.randn(2, 16, size, size) for size in (8, 4)]
    scores, deltas = head(maps)
    assert [tuple(score.shape) for score in scores] == [(2, 1, 8, 8), (2, 1, 4, 4)]
    sum(x.sum() for x in (*scores, *deltas)).backward()
    assert head.rpn_conv[0].conv.weight.grad.any()
    head.eval()
    latent, bits = head(maps), pack_(copy.deepcopy(head))(maps)
    assert all(torch.equal(one, other) for pair in zip(latent, bits, strict=True) for one, other in zip(*pair, strict=True))
