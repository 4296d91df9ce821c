"""Boxes of two models, matched: other numbers of boxes are no infinite difference."""

import pytest
import torch

pytest.importorskip('mmdet')

from bnn_plugins.integrations.mmdet.boxes import MatchedBoxes, match_boxes


def found(*boxes):
    """Of (x, y, label, score): 8 by 8 pixels."""
    x, y, labels, scores = torch.tensor(boxes).reshape(-1, 4).T
    return dict(pred_instances=dict(bboxes=torch.stack((x, y, x + 8, y + 8), 1), labels=labels.long(), scores=scores))


def test_the_same():
    boxes = [found((0., 0., 1., 0.5), (20., 0., 2., 0.25)), found()]
    assert match_boxes(boxes, boxes) == MatchedBoxes(2, 2, 2, 0, 0)


def test_one_is_missing_and_one_has_moved():
    matched = match_boxes([found((0., 0., 1., 0.5), (20., 0., 1., 0.25))], [found((1., 0., 1., 0.75))])
    assert matched == MatchedBoxes(2, 1, 1, 0.25, 1)
    assert str(matched) == 'boxes matched 1 of 2, largest matched difference 0.25 of a score and 1 pixels'


def test_classes_and_overlaps_are_kept_apart():
    assert match_boxes([found((0., 0., 1., 0.5))], [found((0., 0., 2., 0.5))]).matched == 0
    assert match_boxes([found((0., 0., 1., 0.5))], [found((5., 0., 1., 0.5))]).matched == 0
    assert match_boxes([found()], [found((5., 0., 1., 0.5))]) == MatchedBoxes(0, 1)


def test_each_box_is_matched_once_the_surest_first():
    matched = match_boxes([found((0., 0., 1., 0.25), (1., 0., 1., 0.75))], [found((1., 0., 1., 0.75))])
    assert (matched.matched, matched.score) == (1, 0)


def test_other_images():
    with pytest.raises(ValueError, match='the same images twice, but got 1 and 2'):
        match_boxes([found()], [found(), found()])
