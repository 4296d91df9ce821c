"""Every native backbone: published costs, the contract of mmdet, expansion, packing, and the arithmetic of its blocks."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnn_plugins
from bnn_plugins.layers import BinaryLayer, RPReLU, Tile
from bnn_plugins.models import BNNResNet
from bnn_plugins.models.backbones import (
    BNNMLP,
    BNNSSDVGG,
    BNNBiReal50,
    BNNBNext,
    BNNCifarResNet,
    BNNConvNet,
    BNNMoBiNet,
    BNNReActNet,
    BNNVGGSmall,
)
from bnn_plugins.models.backbones.bnn_bnext import Processor
from bnn_plugins.models.backbones.bnn_cifar_resnet import SHORTCUTS, CifarBlock
from bnn_plugins.models.backbones.bnn_reactnet import ReActBlock
from bnn_plugins.models.layer_factory import LayerFactory
from bnn_plugins.models.thresholds import UntiedThresholds
from bnn_plugins.registry import MODELS

# Small versions: 32x32 images, widths that tau = 4 and two groups divide.
SMALL = {
    'resnet14': lambda **kwargs: BNNCifarResNet(14, base_channels=16, **kwargs),
    'resnet18': lambda **kwargs: BNNCifarResNet(18, base_channels=16, **kwargs),
    'resnet8 slice single': lambda **kwargs: BNNCifarResNet(8, shortcut='slice', skips='single', **kwargs),
    'resnet8 binary shortcut': lambda **kwargs: BNNCifarResNet(8, shortcut='binary', skips='single', stem_act=False, **kwargs),
    'resnet8 strided': lambda **kwargs: BNNCifarResNet(8, shortcut='strided', **kwargs),
    'resnet18 stages': lambda **kwargs: BNNResNet(18, base_channels=16, **kwargs),
    'resnet18 released': lambda **kwargs: BNNResNet(18, base_channels=16, pool_last=True, avg_down=False, stem_act=False,
                                                    **kwargs),
    'bireal50': lambda **kwargs: BNNBiReal50(base_channels=32, num_stages=2, strides=(1, 2), dilations=(1, 1),
                                             out_indices=(1,), **kwargs),
    'vgg small': lambda **kwargs: BNNVGGSmall(base_channels=16, **kwargs),
    'ssd vgg': lambda **kwargs: BNNSSDVGG(base_channels=16, **kwargs),
    'reactnet': lambda **kwargs: BNNReActNet(base_channels=16, blocks=(1, 1, 2), stem_stride=1, out_indices=(2,), **kwargs),
    'bnext': lambda **kwargs: BNNBNext(base_channels=64, blocks=(1, 2), stem_stride=1, out_indices=(1,), **kwargs),
    'mobinet': lambda **kwargs: BNNMoBiNet(8, base_channels=16, blocks=(1, 1, 2), stem_stride=1, out_indices=(2,), **kwargs),
    'mlp': lambda **kwargs: BNNMLP(3 * 32 * 32, 32, **kwargs),
    'convnet': lambda **kwargs: BNNConvNet((32, 32), base_channels=16, **kwargs),
}
LINEAR = ('mlp', 'convnet')


def images(size=32, batch=2, channels=3):
    return torch.randn(batch, channels, size, size)


class Classifier(nn.Module):
    """A backbone and a linear layer, as the papers count them."""

    def __init__(self, backbone, classes, flat=False, pixels=1):
        super().__init__()
        self.backbone, self.flat = backbone, flat
        self.fc = nn.Linear(backbone.feat_dim * pixels, classes)

    def forward(self, x):
        x = self.backbone(x)[-1]
        return self.fc(x.flatten(1) if self.flat or x.ndim == 2 else x.mean((2, 3)))


# name: model, size of the images, what the literature (or arithmetic of it) says: BOPs, FLOPs, OPs to the digits given, binary
# weights. Those of ReActNet-A, Rep-ReActNet-A, Bi-Real-18 and BNext are in the READMEs of ReActNet, Rep_AdamBNN and BNext.
COSTS = {
    'resnet20': (lambda: Classifier(BNNCifarResNet(20, 'recu'), 10), 32, 4.01e7, 4.430e5, 1.07e6, 267264),
    'resnet20 rep': (lambda: Classifier(BNNCifarResNet(20, 'recu', expand=dict(tau=2, style='rep')), 10), 32,
                     4.01e7, 4.436e5, 1.07e6, 267264),
    'cifar resnet18': (lambda: Classifier(BNNCifarResNet(18, 'recu'), 10), 32, 5.47e8, 8.07e6, 1.66e7, 10985472),
    'cifar resnet18 pad': (lambda: Classifier(BNNCifarResNet(18, 'recu', shortcut='pad'), 10), 32, 5.47e8, 1.77e6, 1.03e7,
                           10985472),
    'vgg small': (lambda: Classifier(BNNVGGSmall('recu'), 10, flat=True, pixels=16), 32, 6.04e8, 3.62e6, 1.31e7, 4571136),
    'resnet18': (lambda: Classifier(BNNResNet(18), 1000), 224, 1.68e9, 1.38e8, 1.64e8, 10985472),
    'reactnet a': (lambda: Classifier(BNNReActNet(), 1000), 224, 4.817e9, 1.186e7, 0.871e8, 28253184),
    'rep reactnet a': (lambda: Classifier(BNNReActNet(expand=dict(tau=2, style='rep')), 1000), 224, 4.817e9, 1.289e7, 0.8815e8,
                       28253184),
    'bnext t': (lambda: Classifier(BNNBNext('T'), 1000), 224, 4.817e9, 1.33e7, 0.886e8, 28253184),
    'es bnext t': (lambda: Classifier(BNNBNext('T', expand=dict(tau=2)), 1000), 224, 4.817e9, 1.33e7, 0.886e8, 28253184),
    'convnet': (lambda: Classifier(BNNConvNet(), 10), 32, 6.13e8, 3.55e6, 1.31e7, 14011776),
    'mlp': (lambda: Classifier(BNNMLP(3 * 32 * 32, 512), 10), 32, 5.24e5, 1.578e6, 1.59e6, 3072 * 512 + 2 * 512**2),
}


def digits(value: float, text: float) -> bool:
    """Whether ``value`` rounds to ``text`` in as many digits as ``text`` has."""
    length = len(f'{text:e}'.split('e')[0].rstrip('0').replace('.', ''))
    return float(f'{value:.{length - 1}e}') == text


@pytest.mark.parametrize('name', COSTS)
def test_costs_are_the_published_ones(name):
    build, size, bops, flops, ops, binary = COSTS[name]
    totals = bnn_plugins.summarize(build(), images(size, 1)).totals
    assert totals.params_binary == binary
    assert digits(totals.bops, bops)
    assert digits(totals.flops, flops)
    assert digits(totals.ops, ops)


@pytest.mark.parametrize(('size', 'ops'), [('S', 1.90e8), ('M', 3.38e8), ('L', 8.54e8)])
def test_costs_of_large_bnexts(size, ops):
    """The OPs of BNext's README; on the meta device, for speed."""
    counts = {False: 0, True: 0}

    def count(module, _, out):
        counts[isinstance(module, BinaryLayer)] += out.numel() * module.weight[0].numel()

    with torch.device('meta'):
        model = Classifier(BNNBNext(size), 1000)
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
                module._sign_checked = True  # there is nothing to look at on this device
        model(images(224, 2))
    counts = {kind: count / 2 for kind, count in counts.items()}
    assert counts[False] + counts[True] / 64 == pytest.approx(ops, rel=0.003)


def test_cost_of_mobinet_by_hand():
    widths, sides = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024], [112, 112, 56, 56, 28, 28, *[14] * 6, 7, 7]
    weights = [9 * 4 * a + a * b for a, b in pairwise(widths)]
    bops = sum(w * s * s for w, s in zip(weights, sides[1:], strict=True))
    totals = bnn_plugins.summarize(Classifier(BNNMoBiNet(4), 1000), images(224, 1)).totals
    assert totals.params_binary == sum(weights)
    assert totals.bops == bops
    assert totals.flops == 27 * 32 * 112**2 + 1024 * 1000


@pytest.mark.parametrize('depth', [20, 32, 44, 56, 110])
def test_depth_is_the_number_of_layers(depth):
    model = BNNCifarResNet(depth)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) + 1 == depth, 'and the linear layer'
    assert sum(isinstance(m, BinaryLayer) for m in layers) == depth - 2


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize(('method', 'expand'), [
    ('reactnet', None), ('recu', dict(tau=2)), ('reactnet', dict(tau=2, style='rep')),
    ('recu', dict(tau=2, groups=2, style='rep')), ('reactnet', dict(tau=4, spread=0.5)),
    ('recu', dict(style='thresholds', tau=2))], ids=str)
def test_contract(name, expand, method):
    """Shapes, gradients to every parameter, costs of the base network, packed equals latent, deepcopy, state dict."""
    if name in LINEAR and expand and (expand.get('groups') or expand['style' if 'style' in expand else 'tau'] == 'thresholds'):
        with pytest.raises(ValueError, match='groups'):
            SMALL[name](method=method, expand=expand)
        return
    model, base = SMALL[name](method=method, expand=expand), SMALL[name](method=method)
    model.init_weights()
    outs, base_outs = model(images(batch=4)), base(images(batch=4))
    assert isinstance(outs, tuple)
    factor = expand['tau'] * expand.get('groups', 1) if expand and expand.get('style') == 'rep' else 1
    assert [out.shape for out in outs] == [(4, out.shape[1] * factor, *out.shape[2:]) for out in base_outs]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        if 'attention' not in key and 'mix' not in key:  # the few channels of a bottleneck can all be below zero
            assert p.grad.any(), key
    layers = [[m for m in net.modules() if isinstance(m, BinaryLayer)] for net in (model, base)]
    assert [m.weight.numel() for m in layers[0]] == [m.weight.numel() for m in layers[1]]
    model.eval()
    x = images()
    expected = model(x)
    twin = copy.deepcopy(model)
    other = SMALL[name](method=method, expand=expand).eval()
    other.load_state_dict(model.state_dict())
    packed = bnn_plugins.pack_(copy.deepcopy(model))
    for net in (twin, other, packed):
        for out, value in zip(net(x), expected, strict=True):
            assert torch.equal(out, value)


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('expand', [dict(tau=1), dict(tau=1, groups=1, style='rep'), dict(style='thresholds', tau=1)], ids=str)
def test_tau_1_is_the_base_network(name, expand):
    torch.manual_seed(0)
    base = SMALL[name]()
    torch.manual_seed(0)
    model = SMALL[name](expand=expand)
    x = images()
    assert list(model.state_dict()) == list(base.state_dict())
    for out, value in zip(model(x), base(x), strict=True):
        assert torch.equal(out, value)


@pytest.mark.parametrize('name', ['resnet14', 'vgg small', 'mobinet'])
@pytest.mark.parametrize('method', bnn_plugins.list_methods())
def test_every_method(name, method):
    model = SMALL[name](method=method, pad_value=0)
    model.init_weights()
    out = model(images())[-1]
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(m.weight.grad.any() for m in model.modules() if isinstance(m, BinaryLayer))


@pytest.mark.parametrize('name', sorted(SMALL.keys() - {'mlp', 'convnet'}))  # in those of BinaryNet the first layer is binary
def test_without_a_method_it_is_the_float_twin(name):
    twin, binary = SMALL[name](method=None), SMALL[name](method='binarynet')
    assert not any(isinstance(module, BinaryLayer) for module in twin.modules())
    assert twin.factory.act == ('prelu' if name == 'bnext' else 'relu')
    shapes = [[m.weight.shape for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)] for model in (twin, binary)]
    assert shapes[0] == shapes[1]
    assert twin(images())[-1].shape == binary(images())[-1].shape


@pytest.mark.parametrize(('build', 'error', 'sentence'), [
    (lambda: BNNCifarResNet(21), ValueError, r'depth 18 or 6n \+ 2 .* but got 21'),
    (lambda: BNNCifarResNet(20, shortcut='padd'), ValueError, "did you mean 'pad'"),
    (lambda: BNNCifarResNet(20, skips='triple'), ValueError, 'unknown skips'),
    (lambda: BNNCifarResNet(20, out_indices=(3,)), ValueError, r'has the outputs 0 to 2, but got out_indices=\(3,\)'),
    (lambda: BNNReActNet(widths=3), TypeError, 'unknown argument of BNNReActNet'),
    (lambda: BNNBNext('X'), ValueError, 'unknown size of BNNBNext'),
    (lambda: BNNMoBiNet(5), ValueError, 'k channels per group must divide the 32 channels'),
    (lambda: BNNMoBiNet(1, expand=dict(tau=2)), ValueError, 'tau=2 must divide the 1 output channels of each group'),
    (lambda: BNNSSDVGG(depth=19), ValueError, 'is the VGG16 of SSD'),
    (lambda: BNNCifarResNet(20, None, expand=dict(tau=2)), ValueError, 'expand is for binary networks'),
    (lambda: BNNCifarResNet(20, expand=dict(tau=3)), ValueError, 'must be divisible by'),
    (lambda: BNNCifarResNet(20, expand=dict(taus=2)), ValueError, "did you mean 'tau'"),
    (lambda: BNNCifarResNet(20, expand=dict(tau=2, style='drop_in')), ValueError, "styles 'es', 'rep', 'thresholds'"),
    (lambda: BNNCifarResNet(20, expand=dict(style='thresholds', groups=2)), ValueError, 'unknown key of expand'),
    (lambda: BNNCifarResNet(20, 'recu', expand=dict(tau=2, style='rep', spread=1.0)), ValueError, 'spread: with style'),
])
def test_bad_arguments(build, error, sentence):
    with pytest.raises(error, match=sentence):
        build()


class TestOutputs:
    def test_all_stages(self):
        outs = BNNCifarResNet(20, out_indices=(0, 1, 2)).eval()(images(33))
        assert [tuple(out.shape[1:]) for out in outs] == [(16, 33, 33), (32, 17, 17), (64, 9, 9)]
        outs = BNNReActNet(out_indices=(1, 2, 3, 4), base_channels=4).eval()(images(65))
        assert [tuple(out.shape[1:]) for out in outs] == [(16, 17, 17), (32, 9, 9), (64, 5, 5), (128, 3, 3)]

    def test_ssd(self):
        """mmdet's SSD300 with the type of its backbone changed: the maps that neck and head expect, gradients to the stem."""
        from mmengine.hub import get_config
        from mmengine.registry import DefaultScope
        cfg = get_config('mmdet::ssd/ssd300_coco.py').model
        cfg.backbone.type, cfg.backbone.init_cfg = 'bnn_plugins.BNNSSDVGG', None
        cfg.backbone.base_channels, cfg.neck.in_channels = 16, (128, 256)
        cfg.bbox_head.in_channels = cfg.neck.out_channels = (128, 256, 512, 256, 256, 256)
        with DefaultScope.overwrite_default_scope('mmdet'):
            detector = MODELS.build(cfg)
        scores, boxes = detector(images(300, 1), mode='tensor')
        assert [score.shape[2] for score in scores] == [38, 19, 10, 5, 3, 1]
        sum(out.square().mean() for out in (*scores, *boxes)).backward()
        assert detector.backbone.conv6.conv.weight.grad.any()
        assert detector.backbone.stem.conv.weight.grad.any()

    @pytest.mark.parametrize(('style', 'width'), [('es', 32), ('rep', 64)])
    def test_what_leaves_an_expanded_network(self, style, width):
        model = BNNCifarResNet(8, base_channels=8, expand=dict(tau=2, style=style)).eval()
        assert model.feat_dim == model(images())[0].shape[1] == width
        assert model.stages[-1](torch.randn(1, 32, 8, 8)).shape[1] == 64, 'the stream is wide'

    @pytest.mark.parametrize(('style', 'kinds'), [('es', [nn.Conv2d, Tile, nn.BatchNorm2d, RPReLU]),
                                                  ('rep', [nn.Conv2d, nn.BatchNorm2d, Tile, RPReLU])])
    def test_where_the_stem_repeats(self, style, kinds):
        stem = BNNCifarResNet(8, expand=dict(tau=2, style=style)).stem
        assert [type(m) for m in stem] == kinds
        assert {m.num_features for m in stem if isinstance(m, nn.BatchNorm2d)} == {32 if style == 'es' else 16}


class TestSpread:
    def test_norms_where_nothing_else_tells_copies_apart(self):
        model = BNNVGGSmall('recu', base_channels=8, expand=dict(tau=2, spread=0.6))
        model.init_weights()
        assert torch.equal(model.stem.norm.bias, torch.tensor([-0.6, 0.6]).repeat_interleave(8))
        expected = torch.linspace(-0.6, 0.6, 4).repeat_interleave(4)
        torch.testing.assert_close(model.stages[0][0].norm.bias.detach(), expected)

    def test_residual_norms_stay(self):
        """An offset in every unit would add up along the shortcuts."""
        model = BNNCifarResNet(8, 'recu', expand=dict(tau=2, spread=0.6))
        model.init_weights()
        assert model.stem.norm.bias.detach().abs().min().item() == pytest.approx(0.6)
        assert not model.stages[0][0].unit1.norm.bias.any()

    def test_methods_with_thresholds_spread_these(self):
        model = BNNCifarResNet(8, 'reactnet', expand=dict(tau=2, spread=0.6))
        model.init_weights()
        assert not model.stem.norm.bias.any()
        assert torch.equal(model.stages[0][0].unit1.conv.activation.shift, torch.tensor([-0.6, 0.6]).repeat_interleave(16))


class TestDeep:
    def test_residual_init(self):
        model = BNNCifarResNet(14, base_channels=8, residual_init=0.1)
        model.init_weights()
        starts = [m.norm.weight for m in model.modules() if hasattr(m, 'conv') and hasattr(m.conv, 'activation')]
        assert len(starts) == 12
        assert all((start == 0.1).all() for start in starts)
        assert (model.stem.norm.weight == 1).all()

    def test_gradients_of_a_deep_network_do_not_explode(self):
        norms = []
        for residual_init in (1.0, 0.1):
            torch.manual_seed(0)
            model = BNNCifarResNet(110, base_channels=8, residual_init=residual_init)
            model.init_weights()
            out = model(images(16, 8))[0].mean((2, 3))
            F.cross_entropy(out, torch.arange(8)).backward()
            norms.append(model.stem.conv.weight.grad.norm().item())
        assert norms[1] < norms[0] / 20


class TestArithmetic:
    """The blocks, once more from their parts."""

    @pytest.mark.parametrize('expand', [None, dict(tau=2)], ids=str)
    @pytest.mark.parametrize('average', [True, False])
    def test_pad_shortcut(self, average, expand):
        factory = LayerFactory(expand=expand)
        wide = 1 if expand is None else 2
        x = torch.randn(2, 4 * wide, 6, 6)
        out = SHORTCUTS['pad' if average else 'slice'](factory, 4, 8, 2)(x)
        assert out.shape == (2, 8 * wide, 3, 3)
        inner = x.unflatten(3, (3, 2)).unflatten(2, (3, 2)).mean((3, 5)) if average else x[:, :, ::2, ::2]
        torch.testing.assert_close(out[:, 2 * wide:6 * wide], inner)
        assert not out[:, :2 * wide].any()
        assert not out[:, 6 * wide:].any()

    @pytest.mark.parametrize('skips', ['double', 'single'])
    def test_cifar_block(self, skips):
        block = CifarBlock(LayerFactory('bireal', 'hardtanh'), 4, 4, 1, 'pad', skips, with_cp=False).eval()
        x = torch.randn(2, 4, 5, 5)

        def unit(u, x):
            signs = torch.where(x >= 0, 1.0, -1.0)
            sums = F.conv2d(signs, torch.where(u.conv.weight >= 0, 1.0, -1.0), padding=1)
            return sums * u.conv.weight.abs().mean((1, 2, 3)).view(-1, 1, 1) / (1 + 1e-5) ** 0.5

        if skips == 'double':
            middle = (unit(block.unit1, x) + x).clamp(-1, 1)
            expected = (unit(block.unit2, middle) + middle).clamp(-1, 1)
        else:
            expected = (unit(block.unit2, unit(block.unit1, x).clamp(-1, 1)) + x).clamp(-1, 1)
        torch.testing.assert_close(block(x), expected)

    def test_expanded_unit(self):
        """Fewer filters, tiled, each copy with a norm of its own."""
        factory = LayerFactory('binarynet', 'identity', expand=dict(tau=2))
        block = CifarBlock(factory, 4, 4, 1, 'pad', 'double', with_cp=False).eval()
        unit = block.unit1
        unit.norm.weight.data.normal_()
        x = torch.randn(2, 8, 5, 5)
        weight = torch.where(unit.conv.weight >= 0, 1.0, -1.0)
        assert weight.shape == (2, 8, 3, 3)
        maps = F.conv2d(torch.where(x >= 0, 1.0, -1.0), weight, padding=1)
        expected = torch.stack([maps[:, j % 2] * unit.norm.weight[j] / (1 + 1e-5) ** 0.5 for j in range(8)], 1) + x
        torch.testing.assert_close(unit(x, x), expected)

    def test_reactnet_block(self):
        block = ReActBlock(LayerFactory('bireal', 'identity'), 4, 8, 2).eval()
        x = torch.randn(2, 4, 6, 6)
        middle = block.unit1.norm(block.unit1.conv(x)) + F.avg_pool2d(x, 2)
        expected = torch.cat([u.norm(u.conv(middle)) + middle for u in (block.unit2_0, block.unit2_1)], 1)
        torch.testing.assert_close(block(x), expected)

    @pytest.mark.parametrize('multiply', [True, False])
    def test_bnext_processor(self, multiply):
        unit = Processor(LayerFactory('bireal', 'prelu'), 16, 3, 2, multiply).eval()
        unit.mix.data.uniform_(0, 1)
        x = torch.randn(2, 16, 6, 6)
        y = F.prelu(unit.norm1(unit.conv(x)), torch.full((16,), 0.25))
        mixed = unit.mix * F.avg_pool2d(x, 2) + (1 - unit.mix) * y
        hidden = F.relu(F.linear(mixed.mean((2, 3)), unit.attention.squeeze.weight[..., 0, 0], unit.attention.squeeze.bias))
        gate = torch.sigmoid(F.linear(hidden, unit.attention.excite.weight[..., 0, 0], unit.attention.excite.bias))
        y = gate[..., None, None] * y
        around = F.avg_pool2d(F.prelu(x, torch.full((16,), 0.25)) if multiply else x, 2)
        y = y * around if multiply else y
        torch.testing.assert_close(unit(x), y / (1 + 1e-5) ** 0.5 + around)

    def test_bnext_mix_stays_between_0_and_1(self):
        unit = Processor(LayerFactory('bireal'), 16, 1)
        unit.mix.data.uniform_(-2, 3)
        unit.eval()(images(4, channels=16))
        assert unit.mix.max() > 1
        unit.train()(images(4, channels=16))
        assert unit.mix.min() == 0
        assert unit.mix.max() == 1

    def test_every_other_block_of_bnext_multiplies(self):
        blocks = [block.spatial.shortcut_act is not None for stage in BNNBNext(base_channels=8).stages for block in stage]
        assert blocks == [False, *[True, False] * 6]

    def test_multi_threshold(self):
        """Group k of the kernels reads sign(x + t_k), with as many weights as the base network."""
        conv = LayerFactory('bireal', expand=dict(style='thresholds', tau=2, spread=0.5)).conv(4, 6, 3)
        untie, layer = conv
        assert isinstance(untie, UntiedThresholds)
        assert torch.equal(untie.shift, torch.tensor([-0.5] * 4 + [0.5] * 4))
        assert layer.weight.numel() == 4 * 6 * 9
        untie.shift.data.normal_()
        x = torch.randn(2, 4, 5, 5)
        weight = torch.where(layer.weight >= 0, 1.0, -1.0) * layer.weight.abs().mean((1, 2, 3), keepdim=True)
        expected = [F.conv2d(torch.where(x + untie.shift[4 * k:4 * k + 4].view(-1, 1, 1) >= 0, 1.0, -1.0),
                             weight[3 * k:3 * k + 3], padding=1) for k in range(2)]
        torch.testing.assert_close(conv.eval()(x), torch.cat(expected, 1))

    def test_binarynet_reads_real_pixels(self):
        model = BNNMLP(12, 8, hidden=1).eval()
        x = torch.randn(3, 3, 2, 2)
        layer = model.layers[0].layer
        expected = F.linear(x.flatten(1), torch.where(layer.weight >= 0, 1.0, -1.0)) / (1 + 1e-5) ** 0.5
        torch.testing.assert_close(model(x)[0], expected.clamp(-1, 1))
