"""Block fusion: the fused model against the packed one. Exact where no floating point operation rounds."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import bnn_kernels
from bnn_kernels import Epilogue
from bnn_plugins import binarize_, fuse_, pack_, unfuse_, verify
from bnn_plugins.deploy import PackedLayer, fused_parts, fused_steps
from bnn_plugins.deploy.fuse_ops import integer_threshold
from bnn_plugins.layers import BinaryConv2d, RPReLU

from .fuse_nets import ACTS, RandomNet, exact_image, make_exact_
from .nets import net, randomise_

seeds = st.integers(0, 2**32 - 1)


def exact_net(seed):
    torch.manual_seed(seed)
    return make_exact_(pack_(RandomNet(seed).eval()))


def resnet(depth=18, method='reactnet', **kwargs):
    backbones = pytest.importorskip('bnn_plugins.models.backbones')
    return randomise_(backbones.BNNResNet(depth, base_channels=8, method=method, **kwargs)).eval()


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@torch.no_grad()
def run(model, *inputs):
    return flat(model(*inputs))


def equal(left, right):
    return len(left) == len(right) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))


def near(left, right, share=0.99):
    """Equal but for rounding, and for what a flipped sign changes."""
    return all(torch.isclose(a, b, rtol=1e-4, atol=1e-4).float().mean() >= share for a, b in zip(left, right, strict=True))


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
    assert report.parts[''] == ('forward cannot be traced (ValueError: its argument mode chooses what it does): its parts are '
                                'fused one by one')
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
    if depth == 18:  # the first shortcut is the pooled stem, which a pooling made
        assert report.rows['layer1.0.conv2'] == 'conv, norm, shortcut, PReLU, sign of layer1.1.conv1'
        assert report.rows['layer1.1.conv2'] == 'conv, norm, shortcut in place, PReLU, sign of layer2.0.conv1'
    checked = verify(latent, packed, torch.randn(1, 3, 64, 64))
    assert checked.ok, checked
    assert 'layer2.0.downsample.0' in {row.name for row in checked.rows}


def test_a_converted_head():
    latent = converted(type='RetinaHead', num_classes=3, in_channels=16, feat_channels=16, stacked_convs=2,
                       norm_cfg=dict(type='BN'))
    packed = pack_(copy.deepcopy(latent))
    report = fuse_(packed)
    assert report.parts[''].endswith('(forward_single)')
    assert report.rows['cls_convs.0.conv'] == 'conv, norm, PReLU, sign of cls_convs.1.conv, words only'
    checked = verify(latent, packed, [torch.randn(1, 16, 8, 8), torch.randn(1, 16, 4, 4)])
    assert checked.ok, checked
    assert checked.signs == 2 * 16 * (64 + 16)


class Sequence(nn.Sequential):
    """conv, norm, act, ... as VGG-like networks have them."""

    def __init__(self, *acts, width=12, norm=True, method='reactnet'):
        layers = []
        for act in acts:
            layers += [BinaryConv2d(width, width, 3, padding=1, method=method)]
            layers += [nn.BatchNorm2d(width) if norm else nn.Identity()]
            layers += [] if act is None else [act]
        super().__init__(*layers)


def small(*acts, **kwargs):
    torch.manual_seed(0)
    return randomise_(Sequence(*acts, **kwargs)).eval()


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


class TestChanges:
    """What happens to a model after it was fused."""

    def setup_method(self):
        self.model, self.x = pack_(resnet()), torch.randn(1, 3, 64, 64)
        self.before = run(self.model, self.x)
        fuse_(self.model)
        run(self.model, self.x)

    def check(self, model=None, x=None):
        """The fused model computes what the same modules compute without fusing."""
        model, x = model or self.model, self.x if x is None else x
        assert any(True for _ in fused_parts(model))
        fused = run(model, x)
        fresh = run(unfuse_(copy.deepcopy(model)), x)
        assert near(fused, fresh)
        assert not near(fused, self.before), 'something has changed'

    @pytest.mark.parametrize('assign', [False, True])
    def test_load_state_dict(self, assign):
        other = pack_(resnet())
        self.model.load_state_dict(other.state_dict(), assign=assign)
        self.check()
        assert near(run(self.model, self.x), run(other, self.x))

    def test_a_parameter_in_place(self):
        with torch.no_grad():
            self.model.layer1[0].bn1.weight.mul_(-1.5)
        self.check()

    def test_constants_stay_where_they_are(self):
        """A captured CUDA graph reads them there."""
        scales = [step.scale for name, step in fused_steps(self.model) if name.startswith('layer1.0.conv')]
        assert len(scales) == 2
        before = [scale.clone() for scale in scales]
        with torch.no_grad():
            self.model.layer1[0].bn1.weight.mul_(-2), self.model.layer1[0].bn2.weight.mul_(-2)
        run(self.model, self.x)
        assert all(torch.equal(scale, -2 * old) for scale, old in zip(scales, before, strict=True))

    def test_bits_in_place(self):
        self.model.layer4[1].conv2.weight_bits.bitwise_not_()
        self.model.layer2[1].conv2.weight_bits.bitwise_not_()
        assert near(run(self.model, self.x), run(unfuse_(copy.deepcopy(self.model)), self.x))

    def test_a_replaced_parameter(self):
        norm = self.model.layer2[0].downsample[2]
        norm.weight = nn.Parameter(-norm.weight.detach())
        self.check()

    def test_a_factor_that_was_not_there(self):
        layer = self.model.layer1[1].conv1
        layer.folded_scale = torch.full((8,), -0.7)
        self.check()

    def test_a_copy_has_a_graph_of_its_own(self):
        other = copy.deepcopy(self.model)
        assert dict(fused_parts(other))[''].module is other
        with torch.no_grad():
            other.layer1[0].bn1.weight.mul_(-1.5)
        self.check(other)
        assert near(run(self.model, self.x), self.before)

    def test_pickle(self):
        other = pickle.loads(pickle.dumps(self.model))
        assert equal(run(other, self.x), run(self.model, self.x))
        assert dict(fused_parts(other))[''].module is other

    def test_half_precision(self):
        self.model.bfloat16()
        out = run(self.model, self.x.bfloat16())
        assert all(o.dtype == torch.bfloat16 and o.isfinite().all() for o in out)
        assert near(run(self.model.float(), self.x), run(unfuse_(copy.deepcopy(self.model)), self.x))

    def test_double_is_not_fused(self):
        self.model.double()
        out = run(self.model, self.x.double())
        assert equal(out, run(unfuse_(self.model), self.x.double()))
        assert out[0].dtype == torch.float64

    def test_training_mode_runs_the_modules(self):
        expected = run(unfuse_(copy.deepcopy(self.model)).train(), self.x)
        assert equal(run(self.model.train(), self.x), expected)

    def test_a_norm_in_training_mode_runs_the_modules(self):
        other = unfuse_(copy.deepcopy(self.model))
        self.model.layer1[0].bn1.train(), other.layer1[0].bn1.train()
        assert equal(run(self.model, self.x), run(other, self.x))

    def test_hooks_inside_run(self):
        seen = []
        handle = self.model.layer2[0].conv1.register_forward_hook(lambda *_: seen.append(1))
        assert equal(run(self.model, self.x), self.before), 'layer by layer'
        handle.remove()
        assert not equal(run(self.model, self.x), self.before)
        assert seen == [1]

    def test_hooks_of_the_model_run(self):
        seen = []
        self.model.register_forward_hook(lambda *_: seen.append(1))
        run(self.model, self.x)
        assert seen == [1]

    def test_fused_again(self):
        report = fuse_(self.model, exclude='layer1.*')
        assert report.rows['layer1.0.conv1'] == "not fused: excluded by 'layer1.*'"
        assert len(report.fused) == 12
        assert near(run(self.model, self.x), self.before)


class TestContexts:
    def setup_method(self):
        self.model, self.x = pack_(resnet()), torch.randn(1, 3, 64, 64)
        fuse_(self.model)
        self.expected = run(self.model, self.x)

    def test_compile(self):
        assert equal(run(torch.compile(self.model, backend='eager', fullgraph=True), self.x), self.expected)

    def test_compiled_code_sees_new_parameters(self):
        compiled = torch.compile(self.model, backend='eager', fullgraph=True)
        run(compiled, self.x)
        with torch.no_grad():
            self.model.layer1[0].bn1.weight.mul_(-1.5)
        fresh = run(self.model, self.x)
        assert not near(fresh, self.expected)
        assert equal(run(compiled, self.x), fresh)

    def test_export(self):
        with torch.no_grad():  # else the graph is inside of a node of its own
            program = torch.export.export(self.model, (self.x,))
        assert equal(run(program.module(), self.x), self.expected)
        assert any('binary_block2d' in str(node.target) for node in program.graph.nodes)

    def test_inference_mode(self):
        with torch.inference_mode():
            assert equal(flat(self.model(self.x)), self.expected)
            copied = copy.deepcopy(self.model)
            assert equal(flat(copied(self.x)), self.expected)
        assert equal(run(copied, self.x), self.expected)

    def test_autocast(self):
        with torch.autocast('cpu', torch.bfloat16):
            out = run(self.model, self.x)
        assert all(torch.nn.functional.cosine_similarity(o.flatten(), e.flatten(), 0) > 0.6
                   for o, e in zip(out[:2], self.expected[:2], strict=True))

    def test_no_gradients(self):
        assert not any(o.requires_grad for o in self.model(self.x))

    def test_threads(self):
        results = {}
        threads = [threading.Thread(target=lambda i=i: results.update({i: run(self.model, self.x)})) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(equal(results[i], self.expected) for i in range(4))

    def test_a_bfloat16_stream(self):
        report = fuse_(self.model, stream_dtype=torch.bfloat16)
        assert len(report.fused) == 16
        streams = set()
        for name, step in fused_steps(self.model):
            if name.startswith('layer'):
                step.register_forward_hook(lambda _, __, out: streams.update(
                    o.dtype for o in (out if isinstance(out, tuple) else (out,)) if o.is_floating_point()))
        out = run(self.model, self.x)
        assert all(o.dtype == torch.float32 for o in out), 'the host sees its own dtype'
        assert streams == {torch.bfloat16}
        assert torch.equal(out[0], out[0].bfloat16().float()), 'which has been rounded'
        assert torch.nn.functional.cosine_similarity(out[0].flatten(), self.expected[0].flatten(), 0) > 0.9


class Shared(nn.Module):
    """One stream with several readers."""

    def __init__(self, method):
        super().__init__()
        self.first = BinaryConv2d(12, 12, 3, padding=1, method=method)
        self.left, self.right = BinaryConv2d(12, 12, 1, method=method), BinaryConv2d(12, 12, 1, groups=2, method=method)
        self.again = BinaryConv2d(12, 12, 1, method=method)

    def forward(self, x):
        x = self.first(x)
        return self.left(x), self.right(x), self.again(x)


class Mutating(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = BinaryConv2d(12, 12, 1, method='bireal'), BinaryConv2d(12, 12, 1, method='bireal')

    def forward(self, x):
        y = self.one(x)
        early = self.two(y)
        F.relu(y.flatten(2), True)  # through a view
        return early, self.two(y - 1), y


class Doubling(nn.Module):
    """Sums that are no shortcuts: a value with itself, one that is written into a value that leaves, one times a number."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(BinaryConv2d(12, 12, 1, method='bireal') for _ in range(4))

    def forward(self, x):
        one, two, three, four = (conv(x) for conv in self.convs)
        one = one + one
        kept = two  # and is written to, too
        two += three
        return one, kept, two, torch.add(four, x, alpha=2)


class Attend(nn.Module):
    """A sum that broadcasts: one vector per image is added to its map."""

    def __init__(self):
        super().__init__()
        self.pool, self.conv, self.act = nn.AdaptiveAvgPool2d(1), BinaryConv2d(12, 12, 1, method='bireal'), nn.PReLU(12)
        self.norm = nn.BatchNorm2d(12)

    def forward(self, x):
        return self.act(self.norm(self.conv(self.pool(x))) + x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = small(nn.Hardtanh(), None)
        self.plain = small(nn.Hardtanh())

    def forward(self, x):
        return self.block(x) if x.mean() > 0 else self.plain(x)


class TestOddNetworks:
    def check(self, model, *shape, exact=True):
        model = make_exact_(pack_(model.eval()))
        x = exact_image(*(shape or (2, 12, 6, 7)))
        expected = run(model, x)
        report = fuse_(model)
        assert equal(run(model, x), expected), report
        return report

    def test_several_readers(self):
        report = self.check(Shared('bireal'))
        assert report.rows['first'] == 'conv, sign of left; 1 other reader(s) with other thresholds pack the stream themselves'
        report = self.check(Shared('reactnet'))
        assert '2 other reader(s)' in report.rows['first']

    def test_a_stream_that_is_changed_in_place(self):
        report = self.check(Mutating())
        assert report.rows['one'] == 'conv'

    def test_sums_that_are_no_shortcuts(self):
        report = self.check(Doubling())
        assert set(report.rows.values()) == {'conv'}

    @pytest.mark.parametrize(('always', 'row'), [(False, 'conv, norm'), (True, 'conv')])
    def test_dropout_as_a_function(self, always, row):
        class Dropping(Sequence):
            def forward(self, x):
                conv, norm = self
                return norm(F.dropout(conv(x), 0.5, always or self.training))

        assert fuse_(pack_(Dropping(None).eval())).rows['0'] == row

    def test_a_pooling_that_drops_the_last_row(self):
        class Floor(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv = BinaryConv2d(12, 8, 2, 2, method='bireal')
                self.downsample = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))

            def forward(self, x):
                return self.conv(x) + self.downsample(x)

        report = self.check(Floor(), 2, 12, 7, 9)
        assert report.rows['conv'] == 'conv, shortcut in place'

    def test_a_broadcast_sum(self):
        model = make_exact_(pack_(Attend().eval()))
        x = exact_image(2, 12, 6, 7).cumsum(-1)
        expected = run(model, x)
        fuse_(model)
        with pytest.warns(UserWarning, match='conv has another shape than what is added to it'):
            assert equal(run(model, x), expected)
        assert equal(run(model, x), expected)

    def test_control_flow(self):
        report = self.check(Branching())
        assert report.parts.keys() == {'', 'block', 'plain'}
        assert 'symbolically traced variables cannot be used as inputs to control flow' in report.parts['']
        assert report.rows['block.0'] == 'conv, norm, Hardtanh, sign of 3, words only'

    def test_a_network_of_the_other_tests(self):
        """Its units look at shapes: each layer is fused by itself."""
        model = pack_(net())
        x = torch.randn(2, 3, 14, 11)
        expected = run(model, x)
        report = fuse_(model)
        assert len(report.fused) == 6
        assert near(run(model, x), expected, 1)

    def test_linear_layers_with_more_dimensions(self):
        from bnn_plugins.layers import BinaryLinear
        model = nn.Sequential(BinaryLinear(12, 20, method='reactnet'), RPReLU(20, -1), BinaryLinear(20, 9, method='bireal'),
                              nn.Hardtanh(), BinaryLinear(9, 12, method='xnor', bias=False))
        for shape in ((5, 12), (2, 3, 12), (2, 3, 4, 12)):
            report = self.check(copy.deepcopy(model), *shape)
            assert report.rows['0'] == 'linear, RPReLU, sign of 2, words only'

    def test_a_norm_after_a_linear_layer_of_sequences(self):
        from bnn_plugins.layers import BinaryLinear
        model = make_exact_(pack_(nn.Sequential(BinaryLinear(12, 7, method='bireal'), nn.BatchNorm1d(7)).eval()))
        x = exact_image(3, 7, 12)
        expected = run(model, x)  # the norm takes dimension 1 for channels
        fuse_(model)
        with pytest.warns(UserWarning, match='another shape'):
            assert equal(run(model, x), expected)
        assert equal(run(model, x[:, 0]), run(unfuse_(copy.deepcopy(model)), x[:, 0]))

    @pytest.mark.parametrize('expand', [dict(tau=2), dict(tau=2, groups=2), dict(tau=2, style='drop_in')], ids=str)
    def test_expanded_layers(self, expand):
        wide = 16 if expand.get('style') == 'drop_in' else 16 * 2 * expand.get('groups', 1)
        model = nn.Sequential(*(m for _ in range(2) for m in (
            BinaryConv2d(wide, wide, 3, padding=1, method='reactnet', expand=expand), nn.BatchNorm2d(wide), RPReLU(wide))))
        report = self.check(model, 2, wide, 5, 6)
        assert len(report.fused) == 2
        assert ('sign of 3' in report.rows['0']) == (expand.get('style') != 'drop_in')

    def test_pre_norm_moves_the_threshold(self):
        latent = randomise_(nn.Sequential(BinaryConv2d(12, 12, 3, method='xnor', pre_norm=True), nn.ReLU(),
                                          BinaryConv2d(12, 8, 1, method='reactnet', pre_norm=True))).eval()
        packed = pack_(copy.deepcopy(latent))
        assert fuse_(packed).rows['0'] == 'conv, ReLU, sign of 2, words only'
        x = torch.randn(2, 12, 6, 7)
        assert near(run(packed, x), run(latent, x), 0.95)


class TestReasons:
    def rows(self, *layers, **kwargs):
        return fuse_(pack_(nn.Sequential(*layers).eval()), **kwargs).rows

    @pytest.mark.parametrize(('method', 'reason'), [
        (dict(type='dorefa', w_bits=2), r'2-bit weights, 1-bit activations: the fused operators are 1-bit'),
        (dict(type='dorefa', a_bits=2), r'1-bit weights, 2-bit activations'),
        ('binaryconnect', 'real activations: nothing is computed in bits')])
    def test_bits(self, method, reason):
        rows = self.rows(BinaryConv2d(12, 12, 1, method=method), BinaryConv2d(12, 12, 1))
        assert rows['0'].startswith(f'not fused: {reason}')
        assert rows['1'] == 'conv'

    def test_asymmetric_padding(self):
        rows = self.rows(BinaryConv2d(12, 12, 2, padding='same'), BinaryConv2d(12, 12, 3, padding='same'))
        assert rows['0'] == "not fused: padding='same' with an even kernel pads one side more than the other"
        assert rows['1'] == 'conv'

    @pytest.mark.parametrize(('after', 'reason'), [
        (nn.GroupNorm(3, 12), 'GroupNorm 1 stays as it is'), (nn.SiLU(), 'SiLU 1 stays as it is'),
        (nn.BatchNorm2d(12, track_running_stats=False), 'the norm 1 takes the statistics of the batch'),
        (nn.Hardtanh(-2, 2), 'Hardtanh 1 stays as it is')])
    def test_what_stops_a_chain(self, after, reason):
        assert self.rows(BinaryConv2d(12, 12, 1), after)['0'] == f'conv; {reason}'

    def test_hooks(self):
        model = pack_(nn.Sequential(BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12), BinaryConv2d(12, 12, 1)).eval())
        model[1].register_forward_hook(lambda *_: None)
        model[2].register_forward_hook(lambda *_: None)
        rows = fuse_(model).rows
        assert rows == {'0': 'conv; 1 has forward hooks', '2': 'not fused: has forward hooks'}

    def test_a_norm_behind_the_shortcut(self):
        class Late(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12)

            def forward(self, x):
                return self.norm(self.conv(x) + x)

        assert fuse_(pack_(Late().eval())).rows == {'conv': 'conv, shortcut; the norm norm comes after the shortcut'}

    def test_never_called(self):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.spare = BinaryConv2d(12, 12, 1), BinaryConv2d(12, 12, 1)

            def forward(self, x):
                return self.conv(x)

        assert fuse_(pack_(Idle().eval())).rows['spare'] == 'not fused: it is not called by the forward of a module'

    def test_the_table(self):
        report = fuse_(pack_(small(nn.Hardtanh(), None)), exclude=['3'])
        assert report.summary() == '1 of 2 packed layers fused'
        text = str(report)
        assert "not fused: excluded by '3'" in text
        assert 'conv, norm, Hardtanh' in text
        assert report.summary() in text


class TestErrors:
    def test_latent(self):
        with pytest.raises(ValueError, match='this Sequence is latent: pack_ it first, then fuse_ it'):
            fuse_(small(None))

    def test_nothing_packed(self):
        with pytest.raises(ValueError, match='this Linear has no packed layer: binarize_ and pack_ it first'):
            fuse_(nn.Linear(2, 2))

    def test_unknown_pattern(self):
        with pytest.raises(ValueError, match="exclude: the pattern 'layer9' matches no packed layer"):
            fuse_(pack_(small(None)), exclude=['layer9'])

    def test_dtype(self):
        with pytest.raises(TypeError, match=r'stream_dtype must be torch.float32, bfloat16 or float16, but got torch.float64'):
            fuse_(pack_(small(None)), stream_dtype=torch.float64)
