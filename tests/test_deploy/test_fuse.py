"""Block fusion: the fused model against the packed one. Exact where no floating point operation rounds."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bnn_kernels
from bnn_kernels import Epilogue
from bnn_plugins import binarize_, fuse_, pack_, unfuse_, verify
from bnn_plugins.deploy import PackedLayer, fused_steps
from bnn_plugins.deploy.fused.fold import integer_threshold

from .fuse_nets import ACTS, RandomNet, exact_image, make_exact_, near, resnet, run, small
from .nets import randomise_
from .nets import same as equal

seeds = st.integers(0, 2**32 - 1)


def exact_net(seed):
    torch.manual_seed(seed)
    return make_exact_(pack_(RandomNet(seed).eval()))


class TestRandomNetworks:
    @settings(max_examples=40, deadline=None)
    @given(seeds)
    def test_exact(self, seed):
        model, x = exact_net(seed), exact_image(2, 3, 11, 14)
        tree, state, image = [name for name, _ in model.named_modules()], copy.deepcopy(model.state_dict()), x.clone()
        expected = run(model, x)
        report = fuse_(model)
        assert len(report.fused) == len(report.rows) == sum(isinstance(m, PackedLayer) for m in model.modules())
        # Twice: a stream that is overwritten in place is another one the second time.
        first, second = run(model, x), run(model, x)
        assert equal(first, expected), report
        assert equal(second, expected)
        assert torch.equal(x, image), 'the caller keeps its image'
        assert [name for name, _ in model.named_modules()] == tree
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
        assert equal(run(unfuse_(model), x), expected)

    @settings(max_examples=15, deadline=None)
    @given(seeds)
    def test_backends_agree(self, seed):
        model, x = exact_net(seed), exact_image(1, 3, 9, 10)
        fuse_(model)
        with bnn_kernels.set_backend('reference'):
            expected = run(model, x)
        assert equal(run(model, x), expected)

    @settings(max_examples=15, deadline=None)
    @given(seeds)
    def test_any_weights(self, seed):
        torch.manual_seed(seed)
        latent = randomise_(RandomNet(seed, list(ACTS))).eval()
        packed = pack_(copy.deepcopy(latent))
        fuse_(packed)
        report = verify(latent, packed, torch.randn(2, 3, 11, 14))
        assert report.ok, report


@pytest.mark.parametrize('depth', [18, 34, 50])
def test_resnets(depth):
    latent = resnet(depth)
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert list(report.parts) == [''], 'one graph'
    assert len(report.fused) == len(report.rows) == {18: 16, 34: 32, 50: 48}[depth]
    x = torch.randn(2, 3, 65, 97)
    checked = verify(latent, packed, x)
    assert checked.ok, checked
    assert checked.flips <= 2
    if checked.flips == 0:
        assert near(run(packed, x), run(latent, x), 1)


def test_what_a_resnet_is_fused_into():
    rows = fuse_(pack_(resnet(18))).rows
    # What enters the first block may be read again by the caller; a stage's output is one of the model's.
    assert rows['layer1.0.conv2'] == 'conv, norm, shortcut in place, RPReLU, sign of layer1.1.conv1'
    assert rows['layer1.1.conv2'] == 'conv, norm, shortcut in place, RPReLU, sign of layer2.0.conv1'
    assert rows['layer4.1.conv2'] == 'conv, norm, shortcut in place, RPReLU'
    rows = fuse_(pack_(resnet(50))).rows
    assert rows['layer2.0.conv2'] == 'conv, norm, RPReLU, sign of layer2.0.conv3, words only'
    assert rows['layer1.1.conv2'] == 'conv, norm, shortcut, RPReLU, sign of layer1.1.conv3, words only'


@pytest.mark.parametrize('extra', [False, 'on_input', 'on_output'])
def test_backbone_and_neck(extra):
    necks = pytest.importorskip('bnn_plugins.models.necks')

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = resnet(18)
            self.neck = necks.BNNFPN([8, 16, 32, 64], 16, 5, start_level=1, add_extra_convs=extra)

        def forward(self, x, mode='tensor'):
            return self.neck(self.backbone(x))

    latent = randomise_(Detector()).eval()
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert report.parts.keys() == {'', 'backbone', 'neck'}
    assert report.parts[''] == ('forward cannot be traced (ValueError: its argument mode is a str, so that what it computes '
                                'depends on it): its parts are fused one by one')
    assert len(report.fused) == len(report.rows)
    checked = verify(latent, packed, torch.randn(1, 3, 64, 96))
    assert checked.ok, checked
    with pytest.warns(UserWarning, match='neck is called with something else than 4 maps'), pytest.raises(AssertionError):
        packed.neck([torch.zeros(1, 8, 4, 4)])


def converted(**cfg):
    """A model of mmdet, made binary."""
    registry = pytest.importorskip('mmengine.registry')
    registry.init_default_scope('mmdet')
    pytest.importorskip('mmdet.models')
    model = nn.ModuleDict(dict(part=registry.MODELS.build(cfg)))
    binarize_(model, 'reactnet')
    randomise_(model)
    model.part.eval()
    return model.part


@pytest.mark.parametrize(('depth', 'signs'), [(18, 8), (50, 32)])
def test_converted_resnets(depth, signs):
    latent = converted(type='ResNet', depth=depth, base_channels=8, norm_cfg=dict(type='BN'), norm_eval=False)
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert list(report.parts) == ['']
    assert sum('words only' in row for row in report.rows.values()) == signs, 'what is inside of a block leaves as words'
    if depth == 18:  # the first shortcut is the stem, which a step has pooled into memory of the program
        assert report.rows['layer1.0.conv2'] == 'conv, norm, shortcut in place, PReLU, sign of layer1.1.conv1'
        assert report.rows['layer1.1.conv2'] == 'conv, norm, shortcut in place, PReLU, sign of layer2.0.conv1'
    checked = verify(latent, packed, torch.randn(1, 3, 64, 64))
    assert checked.ok, checked
    assert 'layer2.0.downsample.0' in {row.name for row in checked.rows}


def test_a_converted_head():
    latent = converted(type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2,
                       norm_cfg=dict(type='BN'))
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert report.parts[''].endswith('steps'), 'one program for all levels'
    assert report.rows['cls_convs.0.conv'] == 'conv, norm, PReLU, sign of cls_convs.1.conv, words only'
    sizes = 16, 8, 4, 2, 1
    checked = verify(latent, packed, [torch.randn(1, 16, size, size) for size in sizes])
    assert checked.ok, checked
    assert checked.signs == 2 * 16 * sum(size * size for size in sizes)
    two = [torch.randn(1, 16, size, size) for size in sizes[:2]]
    with torch.no_grad():
        for one, other in zip(packed(two), latent(two), strict=True):
            assert len(one) == 2
            assert all(float((a - b).abs().max()) < 1 for a, b in zip(one, other, strict=True))


class TestThresholds:
    @settings(max_examples=60, deadline=None)
    @given(seeds, st.sampled_from(['identity', 'relu', 'hardtanh', 'prelu']), st.integers(1, 400))
    def test_integers_decide_as_the_floats_do(self, seed, act, limit):
        torch.manual_seed(seed)
        channels = 9
        scale, bias, gamma, zeta, threshold = torch.randn(5, channels) * torch.tensor([0.3, 2, 1, 1, 1])[:, None]
        scale[:2] = torch.tensor([0.0, -0.0])
        scale[2] = 1e-30  # a bias that swallows everything
        slope = torch.rand(channels) * (torch.rand(channels) < 0.8)
        vectors = (gamma, slope, zeta) if act == 'prelu' else (None, None, None)
        found, flip = integer_threshold(Epilogue(scale, bias, act, *vectors, threshold), limit)
        acc = np.arange(-limit, limit + 1, dtype=np.int32)[:, None]
        with np.errstate(all='ignore'):
            v = acc.astype(np.float32) * scale.numpy() + bias.numpy()
            if act == 'prelu':
                v = v - gamma.numpy()
                v = np.where(v > 0, v, slope.numpy() * v) + zeta.numpy()
            v = {'relu': np.maximum(v, np.float32(0)), 'hardtanh': np.clip(v, np.float32(-1), np.float32(1))}.get(act, v)
        assert v.dtype == np.float32
        assert np.array_equal((acc >= found.numpy()) != flip.numpy(), v >= threshold.numpy())

    def test_a_sequence_needs_no_floats(self):
        model = pack_(small(nn.Hardtanh(), nn.PReLU(12), None))
        assert (model[1].weight < 0).any(), 'negative norm scales'
        x = torch.randn(2, 12, 9, 8)
        expected = run(model, x)
        fuse_(model)
        steps = dict(fused_steps(model))
        assert steps['0'].by_integers
        assert near(run(model, x), expected)
        assert steps['3'].by_integers

    def test_negative_slopes_do(self):
        model = pack_(small(nn.PReLU(12), None))
        model[2].weight.data[3] = -0.5
        make_exact_(model)
        x = exact_image(2, 12, 9, 8)
        expected = run(model, x)
        fuse_(model)
        assert not dict(fused_steps(model))['0'].by_integers
        assert equal(run(model, x), expected)
