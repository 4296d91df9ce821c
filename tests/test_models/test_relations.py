"""Distillation losses of Transformers against numpy; where a classifier takes the features of its student."""

import copy

import numpy as np
import pytest
import torch

from bnn_plugins.models import BinaryClassifier
from bnn_plugins.models.losses import DMD, AttnScoreMSE, HiddenMSE, Outputs

LOGITS = torch.zeros(2, 3)
VIT = dict(type='bnn_plugins.BNNViT', base_channels=16, depths=(1, 1), heads=(2, 2), ratios=(2, 2), pools=(2, 1),
           windows=(0, 0), image_size=16, out_indices=(1,), probability=dict(type='elastic', initial=0.3))
FLOAT = dict(type='bnn_plugins.BinaryClassifier', head=dict(num_classes=5),
             backbone=dict(VIT, probability='none', method='binaryvit'))


def of(loss, students, teachers):
    return loss(Outputs(LOGITS, tuple(students)), Outputs(LOGITS, tuple(teachers))).item()


def test_hidden_mse():
    students, teachers = ([torch.randn(2, 3, 4), torch.randn(2, 5)] for _ in range(2))
    expected = sum(((s.numpy() - t.numpy()) ** 2).mean() for s, t in zip(students, teachers, strict=True))
    assert of(HiddenMSE(2.0), students, teachers) == pytest.approx(2 * expected, rel=1e-5)
    maps = torch.randn(2, 3, 5, 4)
    assert of(HiddenMSE(), [maps], [torch.zeros(2, 15, 4)]) == pytest.approx((maps.numpy() ** 2).mean(), rel=1e-5)


def test_attention_scores_leave_masked_keys_out():
    student, teacher = torch.randn(2, 2, 3, 4), torch.randn(2, 2, 3, 4)
    student[..., 0], teacher[..., 0] = -1e4, -100.0
    teacher[..., 1] = -torch.inf
    s, t = student.numpy().copy(), teacher.numpy().copy()
    s[..., 0] = t[..., 0] = t[..., 1] = 0
    assert of(AttnScoreMSE(), [student], [teacher]) == pytest.approx(((s - t) ** 2).mean(), rel=1e-5)


@pytest.mark.parametrize('per_sample', [True, False])
@pytest.mark.parametrize('layout', ['last', 'first'])
@pytest.mark.parametrize('heads', [1, 2])
def test_dmd(heads, layout, per_sample):
    shapes = [(3, 4, 5, 6), (3, 4, 5, 8)]  # other widths, the same 20 tokens
    student, teacher = (torch.randn(shape) for shape in shapes)

    def relations(x):
        """[B, heads, tokens, tokens]"""
        batch, width = len(x), x.shape[-1] // heads
        x = x.reshape(batch, 20, heads, width).transpose(0, 2, 1, 3)
        return np.einsum('bhnd,bhmd->bhnm', x, x) / np.sqrt(width)

    a, b = relations(student.numpy()), relations(teacher.numpy())
    if per_sample:
        expected = np.mean([np.linalg.norm((p / np.linalg.norm(p) - q / np.linalg.norm(q)).ravel())
                            for p, q in zip(a, b, strict=True)])
    else:
        expected = np.linalg.norm((a / np.linalg.norm(a) - b / np.linalg.norm(b)).ravel())
    if layout == 'first':
        student, teacher = student.movedim(-1, 1), teacher.movedim(-1, 1)
    loss = DMD(0.5, layout=layout, heads=heads, per_sample=per_sample)
    assert of(loss, [student], [teacher]) == pytest.approx(0.5 * expected, rel=1e-4)
    twice = loss(Outputs(LOGITS, (torch.cat([student] * 2),)), Outputs(LOGITS, (torch.cat([teacher] * 2),))).item()
    if per_sample:
        assert twice == pytest.approx(0.5 * expected, rel=1e-4), 'the same for a batch of any size'


def test_features_are_chosen():
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert of(HiddenMSE(features=(1,)), [x, y], [y, y]) == 0
    assert of(HiddenMSE(features=(0,)), [x, y], [y, y]) > 0


@pytest.mark.parametrize(('loss', 'student', 'teacher', 'sentence'), [
    (HiddenMSE(), (2, 3, 4), (2, 3, 5), r'the student has \(2, 3, 4\) and the teacher \(2, 3, 5\)'),
    (AttnScoreMSE(), (2, 1, 3, 4), (2, 2, 3, 4), 'number by number'),
    (DMD(), (2, 3, 4), (2, 5, 4), 'different numbers of them'),
])
def test_wrong_shapes(loss, student, teacher, sentence):
    with pytest.raises(ValueError, match=sentence):
        of(loss, [torch.zeros(student)], [torch.zeros(teacher)])


def test_wrong_layout():
    with pytest.raises(ValueError, match="did you mean 'last'"):
        DMD(layout='lst')


class TestStudent:
    layers = ('backbone.stages.1.0.attention.query', 'backbone.stages.1.0', 'backbone.stages.1.0.attention.attention.logits')
    losses = (dict(type='bnn_plugins.DMD', features=(0,), heads=2), dict(type='bnn_plugins.DMD', features=(1,)),
              dict(type='bnn_plugins.HiddenMSE', features=(1,)), dict(type='bnn_plugins.AttnScoreMSE', features=(2,)))

    def build(self, layers=layers, **kwargs):
        torch.manual_seed(0)
        distill = dict(teacher=dict(model=FLOAT, layers=self.layers), losses=self.losses, layers=layers)
        return BinaryClassifier(VIT, dict(num_classes=5), distill=distill, **kwargs)

    def test_the_losses_reach_the_student(self):
        model = self.build()
        data = dict(inputs=torch.randn(3, 3, 16, 16), labels=torch.tensor([0, 1, 4]))
        losses = model(**data, mode='loss')
        assert {'loss_DMD', 'loss_HiddenMSE', 'loss_AttnScoreMSE'} <= set(losses)
        assert all(losses[name] > 0 for name in losses if name.startswith('loss'))
        losses['loss_AttnScoreMSE'].backward(retain_graph=True)
        attention = model.backbone.stages[1][0].attention
        assert attention.query.linear.weight.grad.any()
        assert not any(m._forward_hooks for m in model.modules()), 'hooks are gone when the step is over'
        twin = copy.deepcopy(model).eval()
        assert torch.equal(twin(data['inputs']), model.eval()(data['inputs']))

    def test_what_cannot_be(self):
        with pytest.raises(ValueError, match=r"the student has no layer 'backbone\.stage'"):
            self.build(layers=('backbone.stage',))
        with pytest.raises(ValueError, match='seen by hooks, which a compiled backbone does not call'):
            self.build(compile=True)
