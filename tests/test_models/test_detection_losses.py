"""Distillation losses of detectors against numpy, and TeacherHook around a two-stage detector."""

import numpy as np
import pytest
import torch

from bnn_plugins.models.losses import InstanceEntropyLoss, Outputs, ResponseLoss


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_response():
    """Mutations: gamma left out, the weight of another class, a mean over anchors in the place of the sum of weights."""
    rng = np.random.default_rng(0)
    shapes = [(2, 2 * 3, 3, 4), (2, 2 * 3, 2, 1)]
    scores, real = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    deltas, aims = ([rng.normal(size=(2, 2 * 4, *shape[2:])) for shape in shapes] for _ in range(2))
    classes = boxes = total = 0
    for z, y, d, a in zip(scores, real, deltas, aims, strict=True):
        p, q = sigmoid(y), sigmoid(z)
        classes += (np.abs(p - q)**1.5 * -(p * np.log(q) + (1 - p) * np.log(1 - q))).sum()
        for n, anchor, i, j in np.ndindex(2, 2, *z.shape[2:]):
            w = p[n, 3 * anchor:3 * anchor + 3, i, j].max()
            boxes += w * np.abs(d - a)[n, 4 * anchor:4 * anchor + 4, i, j].sum() / 4
            total += w
    def tensors(maps):
        return tuple(torch.from_numpy(x) for x in maps)
    student, teacher = (Outputs(None, scores=tensors(s), deltas=tensors(d))
                        for s, d in ((scores, deltas), (real, aims)))
    loss = ResponseLoss(weight=0.5, gamma=1.5, box_weight=3.0)(student, teacher)
    np.testing.assert_allclose(loss.item(), 0.5 * (classes + 3 * boxes) / total, rtol=1e-5)
    with pytest.raises(ValueError, match='compares maps of scores and boxes in pairs'):
        ResponseLoss()(student, teacher._replace(scores=teacher.scores[:1], deltas=teacher.deltas[:1]))


STRIDES = (8, 16)
BOXES = [[[0.0, 0, 60, 50], [10, 3, 40, 20], [30, 30, 64, 64]], [[0.0, 0, 200, 200]]]


def test_instance_entropy():
    """Mutations: rows and columns swapped, the other level, the proposals with the smallest distance, no logarithm."""
    rng = np.random.default_rng(1)
    maps = [[rng.normal(size=(2, 5, 64 // s, 96 // s)) for s in STRIDES] for _ in range(2)]
    gamma, temperature, eps = 0.5, 2.0, 0.05

    def softmax(x):
        e = np.exp(x / temperature)
        return e / e.sum(1, keepdims=True)

    losses = []
    for image, boxes in enumerate(BOXES):
        found = []
        for x1, y1, x2, y2 in boxes:
            size = np.sqrt((x2 - x1) * (y2 - y1))
            level = int(np.argmin([abs(np.log(size / s / 7)) for s in STRIDES]))
            s = STRIDES[level]
            cells = [m[level][image][:, int(y1 // s):int(np.ceil(y2 / s)), int(x1 // s):int(np.ceil(x2 / s))].reshape(5, -1)
                     for m in maps]
            one, other = (softmax(x) for x in cells)
            variance = np.concatenate([one, other], 1).var(1, keepdims=True) + eps / one.shape[1]**2
            distance = ((one - other)**2 / variance).sum()
            variance = np.concatenate(cells, 1).var(1, keepdims=True) + eps
            found.append((distance, ((cells[0] - cells[1])**2 / variance + np.log(variance)).mean()))
        found.sort(reverse=True)
        losses += [loss for _, loss in found[:int(np.ceil(gamma * len(found)))]]
    assert len(losses) == 3

    features = [tuple(torch.from_numpy(x).float().requires_grad_() for x in m) for m in maps]
    boxes = [torch.tensor(boxes) for boxes in BOXES]
    student = Outputs(None, features[0], proposals=(boxes[0][:2], boxes[1]), strides=STRIDES)
    teacher = Outputs(None, features[1], proposals=(boxes[0][2:], boxes[1][:0]), strides=STRIDES)
    loss = InstanceEntropyLoss(0.4, gamma, temperature, eps)(student, teacher)
    np.testing.assert_allclose(loss.item(), 0.4 * np.mean(losses), rtol=1e-5)
    loss.backward()
    assert all(x.grad.any() for x in features[0])


def test_no_proposals_and_wrong_arguments():
    maps, none = (torch.randn(1, 2, 4, 4, requires_grad=True),), (torch.zeros(0, 4),)
    out = Outputs(None, maps, proposals=none, strides=(8,))
    loss = InstanceEntropyLoss()(out, out)
    loss.backward()
    assert loss.item() == 0
    with pytest.raises(ValueError, match='share of the proposals'):
        InstanceEntropyLoss(gamma=0.0)
    with pytest.raises(ValueError, match='compares cells of maps'):
        InstanceEntropyLoss()(out, out._replace(features=(maps[0][:, :1],)))
