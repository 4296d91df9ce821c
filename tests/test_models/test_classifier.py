"""BinaryClassifier: losses against formulas, distillation, EMA, autocast, compile, copies, packing."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnn_plugins
from bnn_plugins.models import BinaryClassifier, ClassifierHead
from bnn_plugins.models.classifiers import Teacher
from bnn_plugins.models.losses import (
    AttentionLoss,
    CrossEntropy,
    DistributionLoss,
    FeatureLoss,
    KnowledgeDistillation,
    Outputs,
    SquaredHinge,
)
from bnn_plugins.registry import MODELS

BACKBONE = dict(type='bnn_plugins.BNNCifarResNet', depth=8, base_channels=4)
FLOAT = dict(BACKBONE, method='binaryconnect', out_indices=(1, 2))


def classifier(method='reactnet', **kwargs):
    return BinaryClassifier(dict(BACKBONE, method=method), **dict(dict(head=dict(num_classes=5)), **kwargs))


def batch(count=4, size=16):
    return dict(inputs=[torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)],
                labels=[torch.arange(count) % 5])


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


class TestLosses:
    logits, labels = torch.randn(6, 4), torch.tensor([0, 3, 2, 1, 1, 0])

    def test_cross_entropy_with_smoothing(self):
        target = np.full((6, 4), 0.2 / 4)
        target[np.arange(6), self.labels] += 0.8
        expected = -(target * np.log(softmax(self.logits.numpy()))).sum(1).mean()
        assert CrossEntropy(0.2)(self.logits, self.labels).item() == pytest.approx(expected, rel=1e-5)

    def test_squared_hinge(self):
        signs = np.full((6, 4), -1.0)
        signs[np.arange(6), self.labels] = 1
        expected = (np.maximum(0, 1 - signs * self.logits.numpy()) ** 2).mean()
        assert SquaredHinge()(self.logits, self.labels).item() == pytest.approx(expected, rel=1e-5)

    def test_distribution_loss(self):
        teacher = torch.randn(6, 4)
        expected = -(softmax(teacher.numpy()) * np.log(softmax(self.logits.numpy()))).sum(1).mean()
        loss = DistributionLoss(weight=3.0)(Outputs(self.logits), Outputs(teacher))
        assert loss.item() == pytest.approx(3 * expected, rel=1e-5)

    def test_knowledge_distillation(self):
        teacher = torch.randn(6, 4)
        p, q = softmax(teacher.numpy() / 2), softmax(self.logits.numpy() / 2)
        expected = 4 * (p * np.log(p / q)).sum(1).mean()
        assert KnowledgeDistillation(temperature=2.0)(Outputs(self.logits), Outputs(teacher)).item() == pytest.approx(
            expected, rel=1e-4)

    def test_attention_loss_of_different_widths_and_sizes(self):
        one, other = torch.randn(2, 3, 4, 4), torch.randn(2, 5, 8, 8)
        maps = []
        for x in (one.numpy(), other.numpy().reshape(2, 5, 4, 2, 4, 2).mean((3, 5))):
            attention = (x ** 2).mean(1)
            maps.append(attention / attention.max((1, 2), keepdims=True))
        loss = AttentionLoss(30.0)(Outputs(self.logits, (one,)), Outputs(self.logits, (other,)))
        assert loss.item() == pytest.approx(30 * ((maps[0] - maps[1]) ** 2).mean(), rel=1e-4)

    def test_feature_loss(self):
        one, other = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
        total = 0
        for a, b in zip(one.numpy().reshape(6, 16), other.numpy().reshape(6, 16), strict=True):
            a, b = a - a.mean(), b - b.mean()
            total += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum() / 6
        loss = FeatureLoss()(Outputs(self.logits, (one, one)), Outputs(self.logits, (other, one)))
        assert loss.item() == pytest.approx(total, rel=1e-4)

    def test_maps_must_come_in_pairs(self):
        x = torch.randn(2, 3, 4, 4)
        with pytest.raises(ValueError, match=r'the backbone gives 1 \(out_indices\) and the teacher 2'):
            AttentionLoss()(Outputs(self.logits, (x,)), Outputs(self.logits, (x, x)))
        with pytest.raises(ValueError, match='the student has 3 and the teacher 2'):
            FeatureLoss()(Outputs(self.logits, (x,)), Outputs(self.logits, (x[:, :2],)))


class TestHead:
    def test_mean_and_flatten(self):
        x = torch.randn(3, 4, 2, 2)
        head = ClassifierHead(5, 4)
        torch.testing.assert_close(head([x]), F.linear(x.mean((2, 3)), head.fc.weight, head.fc.bias))
        head = ClassifierHead(5, 4, pool='flatten', pixels=4)
        torch.testing.assert_close(head([None, x]), F.linear(x.flatten(1), head.fc.weight, head.fc.bias))

    def test_norm_in_front_and_binary_layer(self):
        assert isinstance(ClassifierHead(5, 4, norm=True).norm, nn.BatchNorm1d)
        head = ClassifierHead(5, 4, method='binarynet').eval()
        x = torch.randn(3, 4)
        weight = torch.where(head.fc[0].weight >= 0, 1.0, -1.0)
        expected = F.linear(torch.where(x >= 0, 1.0, -1.0), weight) / math.sqrt(1 + 1e-5)
        torch.testing.assert_close(head([x]), expected)

    def test_another_pool(self):
        with pytest.raises(ValueError, match="did you mean 'mean'"):
            ClassifierHead(5, 4, pool='means')


class TestClassifier:
    def test_modes(self):
        model = classifier().eval()
        data = model.data_preprocessor(batch())
        logits = model(data['inputs'])
        prediction, = model(**data, mode='predict')
        torch.testing.assert_close(prediction['scores'], logits.softmax(1))
        assert prediction['labels'] is data['labels']
        losses = model(**data, mode='loss')
        assert losses['loss'].item() == pytest.approx(F.cross_entropy(logits, data['labels']).item())
        assert losses['accuracy'] == (logits.argmax(1) == data['labels']).float().mean()
        assert model.test_step(batch())[0]['scores'].shape == (4, 5)
        with pytest.raises(ValueError, match="mode is 'tensor', 'loss' or 'predict', but got 'train'"):
            model(**data, mode='train')

    def test_accuracy_is_no_loss(self):
        model = classifier()
        data = model.data_preprocessor(batch(), training=True)
        total, logged = model.parse_losses(model(**data, mode='loss'))
        assert logged['loss'] == total
        assert logged['accuracy'] <= 1

    def test_a_backbone_of_another_package(self):
        """Where it does not say its width, the head does."""
        backbone = dict(type='mmdet.MobileNetV2', widen_factor=0.25, out_indices=(7,))
        with pytest.raises(ValueError, match=r'MobileNetV2 does not say its feat_dim: give head\.in_channels'):
            BinaryClassifier(backbone, dict(num_classes=5))
        model = BinaryClassifier(backbone, dict(num_classes=5, in_channels=1280))
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)

    @pytest.mark.parametrize('expand', [None, dict(tau=2), dict(tau=2, style='rep')], ids=str)
    def test_packed_equals_latent(self, expand):
        model = BinaryClassifier(dict(BACKBONE, expand=expand), dict(num_classes=5))
        model(torch.randn(8, 3, 16, 16))
        model.eval()
        x = torch.randn(2, 3, 16, 16)
        expected = model(x)
        assert torch.equal(bnn_plugins.pack_(copy.deepcopy(model))(x), expected)

    def test_summary(self):
        summary = bnn_plugins.summarize(classifier(), torch.randn(1, 3, 16, 16))
        assert [row.name for row in summary.rows][-2] == 'head.fc'
        assert summary.totals.params_binary == sum(m.weight.numel() for m in classifier().modules()
                                                   if hasattr(m, 'weight_binarizer'))

    def test_compile(self):
        torch.manual_seed(0)
        plain = classifier()
        torch.manual_seed(0)
        compiled = classifier(compile=dict(backend='aot_eager'))
        assert list(plain.state_dict()) == list(compiled.state_dict())
        x = torch.randn(4, 3, 16, 16)
        torch.testing.assert_close(compiled(x), plain(x))
        compiled(x).square().mean().backward()
        assert all(p.grad is not None for p in compiled.parameters())
        assert copy.deepcopy(compiled).eval()(x).shape == (4, 5)


class TestDistillation:
    teacher = dict(type='bnn_plugins.BinaryClassifier', backbone=FLOAT, head=dict(num_classes=5))

    def student(self, losses, **kwargs):
        distill = dict(teacher=dict(model=self.teacher, layers=['backbone.stages.1', 'backbone.stages.2']), losses=losses,
                       **kwargs)
        return BinaryClassifier(dict(BACKBONE, out_indices=(1, 2)), dict(num_classes=5), distill=distill)

    def test_the_losses_are_added(self):
        model = self.student([dict(type='bnn_plugins.DistributionLoss'), dict(type='bnn_plugins.AttentionLoss', weight=30.0)],
                             label_weight=0.5)
        data = model.data_preprocessor(batch(), training=True)
        losses = model(**data, mode='loss')
        teacher = model.teacher.model(data['inputs'])
        logits = model(data['inputs'])
        assert losses['loss'].item() == pytest.approx(0.5 * F.cross_entropy(logits, data['labels']).item(), rel=1e-5)
        expected = -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        assert losses['loss_DistributionLoss'].item() == pytest.approx(expected.item(), rel=1e-5)
        total, _ = model.parse_losses(losses)
        assert total.item() == pytest.approx(sum(losses[key].item() for key in losses if 'loss' in key), rel=1e-5)
        total.backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_labels_count_for_nothing_by_default(self):
        model = self.student([dict(type='bnn_plugins.DistributionLoss')])
        assert 'loss' not in model(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]), 'loss')

    def test_the_teacher_stays_outside(self):
        model = self.student([dict(type='bnn_plugins.DistributionLoss')])
        assert not any('teacher' in name for name in model.state_dict())
        assert copy.deepcopy(model).teacher is model.teacher
        model.train()
        assert not model.teacher.model.training
        assert not any(p.requires_grad for p in model.teacher.model.parameters())

    def test_checkpoint_and_bad_teachers(self, tmp_path):
        source = MODELS.build(self.teacher)
        torch.save(dict(state_dict=source.state_dict()), tmp_path / 'teacher.pth')
        teacher = Teacher(self.teacher, str(tmp_path / 'teacher.pth'))
        x = torch.randn(2, 3, 16, 16)
        assert torch.equal(teacher(x).logits, source.eval()(x))
        with pytest.raises(ValueError, match="the teacher has no layer 'layer9'"):
            Teacher(self.teacher, layers=['layer9'])
        with pytest.raises(ValueError, match="did you mean 'losses'"):
            classifier(distill=dict(teacher=self.teacher, loss=[]))

    def test_without_timm(self, monkeypatch):
        monkeypatch.setitem(__import__('sys').modules, 'timm', None)
        with pytest.raises(ImportError, match='needs timm: pip install timm'):
            Teacher(dict(type='timm', model_name='resnet34'))


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[0][-1]


def test_of_several_outputs_the_last_is_a_feature():
    teacher = Teacher(nn.Sequential(nn.LSTM(3, 4), Last()), layers=['0'])
    assert isinstance(teacher(torch.randn(2, 5, 3)).features[0], tuple), 'the state, a pair, and not the sequence'
    assert not teacher.model.training
