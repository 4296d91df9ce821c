"""mmdet's heads with the losses of BiDet."""

import torch
from mmdet.models.dense_heads import RetinaHead, SSDHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi, get_box_tensor
from torch import Tensor

from ...binarize import check_keys
from ...registry import MODELS
from ..losses.bidet import SparseObjectPrior, information


class BiDetLosses:
    """Mixin of a head: what ``bidet=dict(...)`` says is added to its losses.

    ``information=0.1`` and ``prior=0.2`` are weights, 0 leaves a loss out (the paper's ablation); from ``start=0.5`` on, a
    share of the training (the released code: from the first drop of the learning rate); ``score_threshold``,
    ``iou_threshold``, ``top_k``: see :class:`.SparseObjectPrior`. Nothing of it is left in a packed model. The released code
    also draws box deltas from a predicted deviation, times 0 or 0.001; here they are its means.

    Raises:
        ValueError: for an unknown key.
    """

    def __init__(self, *args, bidet: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        weights, options = dict(information=0.1, prior=0.2, start=0.5), dict(bidet or {})
        check_keys('key of bidet', options, (*weights, 'score_threshold', 'iou_threshold', 'top_k'))
        weights = {key: options.pop(key, value) for key, value in weights.items()}
        self.information_weight, self.prior_weight, self.start = weights.values()
        self.prior = SparseObjectPrior(**options)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        self.forgets = progress >= self.start

    def loss(self, x, *args, **kwargs) -> dict:
        losses = super().loss(x, *args, **kwargs)
        if self.forgets and self.information_weight:
            losses['loss_information'] = self.information_weight * information(x)
        return losses


class BiDetDenseLosses(BiDetLosses):
    """For heads with anchors."""

    def loss_by_feat(self, cls_scores: list[Tensor], bbox_preds: list[Tensor], batch_gt_instances, batch_img_metas,
                     batch_gt_instances_ignore=None) -> dict:
        losses = super().loss_by_feat(cls_scores, bbox_preds, batch_gt_instances, batch_img_metas, batch_gt_instances_ignore)
        if self.forgets and self.prior_weight:
            scores, deltas = (torch.cat([out.permute(0, 2, 3, 1).reshape(len(out), -1, width) for out in outs], 1)
                              for outs, width in ((cls_scores, self.cls_out_channels), (bbox_preds, 4)))
            scores = scores.sigmoid() if self.use_sigmoid_cls else scores.softmax(-1)
            anchors = torch.cat([get_box_tensor(anchors) for anchors in self.prior_generator.grid_priors(
                [out.shape[-2:] for out in cls_scores], device=scores.device)])
            boxes = [self.bbox_coder.decode(anchors, delta, max_shape=meta['img_shape'])
                     for delta, meta in zip(deltas.detach(), batch_img_metas, strict=True)]
            losses['loss_prior'] = self.prior_weight * self.prior(
                list(scores), [get_box_tensor(box) for box in boxes], [gt.labels for gt in batch_gt_instances])
        return losses


@MODELS.register_module()
class BiDetSSDHead(BiDetDenseLosses, SSDHead):
    """``mmdet.SSDHead`` with ``bidet=dict(...)``, see :class:`BiDetLosses`."""


@MODELS.register_module()
class BiDetRetinaHead(BiDetDenseLosses, RetinaHead):
    """``mmdet.RetinaHead`` with ``bidet=dict(...)``, see :class:`BiDetLosses`."""


@MODELS.register_module()
class BiDetRoIHead(BiDetLosses, StandardRoIHead):
    """``mmdet.StandardRoIHead`` of Faster R-CNN with ``bidet=dict(...)``, see :class:`BiDetLosses`.

    Detections are those of the sampled regions, the objects of an image those that a region was assigned to (all of them, with
    ``add_gt_as_proposals``).
    """

    def bbox_loss(self, x: tuple[Tensor], sampling_results: list) -> dict:
        results = super().bbox_loss(x, sampling_results)
        if self.forgets and self.prior_weight:
            counts = [len(sampled.priors) for sampled in sampling_results]
            rois, deltas = bbox2roi([sampled.priors for sampled in sampling_results])[:, 1:], results['bbox_pred'].detach()
            kinds = deltas.shape[1] // 4
            boxes = self.bbox_head.bbox_coder.decode(rois.repeat_interleave(kinds, 0), deltas.reshape(-1, 4))
            boxes = get_box_tensor(boxes).view(-1, *([kinds] if kinds > 1 else []), 4)
            labels = [sampled.pos_gt_labels[first_of_each(sampled.pos_assigned_gt_inds)] for sampled in sampling_results]
            results['loss_bbox']['loss_prior'] = self.prior_weight * self.prior(
                results['cls_score'].softmax(-1).split(counts), boxes.split(counts), labels)
        return results


def first_of_each(indices: Tensor) -> Tensor:
    """Where each value of ``indices`` stands for the first time."""
    return torch.tensor([indices.tolist().index(value) for value in indices.unique().tolist()], dtype=torch.long,
                        device=indices.device)
