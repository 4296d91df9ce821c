"""Losses between the features of a binary UNet and its teacher, against numpy."""

import numpy as np
import pytest
import torch

pytest.importorskip('diffusers')

from bnn_plugins.integrations.diffusers import distill


def test_space_patched_loss_against_numpy():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(2, 2, 3, 4, 6))

    def attention(x):
        rows = []
        for i in range(2):
            for top in (0, 2):
                for left in (0, 3):
                    patch = x[i, :, top:top + 2, left:left + 3]
                    a = np.concatenate([(c @ c.T).ravel() for c in patch])
                    rows.append(a / np.linalg.norm(a))
        return np.array(rows)
    expected = np.linalg.norm(attention(s) - attention(t), axis=1).mean()
    result = distill.space_patched_loss([torch.from_numpy(s)], [torch.from_numpy(t)], patches=2)
    assert float(result) == pytest.approx(expected)
    assert float(distill.space_patched_loss([torch.from_numpy(s)], [torch.from_numpy(s)])) == 0
    with pytest.raises(ValueError, match='features of the same shapes'):
        distill.space_patched_loss([torch.zeros(1, 2, 4, 4)], [torch.zeros(1, 3, 4, 4)])


def test_low_rank_mimicking_ignores_what_the_teacher_does_not_use():
    torch.manual_seed(0)
    teacher = torch.randn(4, 8, 3, 3) * torch.tensor([5., 4, .01, .01, .01, .01, .01, .01]).view(-1, 1, 1)
    loss = distill.LowRankMimicking(0.25)
    first = teacher.clone()
    first[:, 2:] += 1  # only where the teacher does not move
    other = teacher.clone()
    other[:, :2] += 1
    assert float(loss([teacher], [teacher])) == 0
    assert float(loss([first], [teacher])) < 0.05 * float(loss([other], [teacher]))
