"""Block fusion of odd networks: several readers, values that are changed in place, control flow, other shapes, expansion."""

import copy
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bnn_kernels
from bnn_plugins import fuse_, pack_, unfuse_, verify
from bnn_plugins.deploy import fused_parts
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU

from .fuse_nets import Sequence, exact_image, make_exact_, near, run, small
from .nets import net, randomise_
from .nets import same as equal


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

    def test_silu_in_every_form(self):
        class Swish(nn.Module):
            def forward(self, x):
                return x * torch.sigmoid(x)

        class Silu(nn.Module):
            def forward(self, x):
                return F.silu(x)

        def unit(act):
            return nn.Sequential(BinaryConv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), act)

        model = nn.Sequential(unit(Swish()), unit(nn.SiLU(inplace=True)), unit(Silu()), unit(nn.Identity()))
        model, x = pack_(randomise_(model).eval()), torch.randn(2, 12, 9, 9)
        expected = run(model, x)
        report = fuse_(model)
        assert near(run(model, x), expected)
        assert [report.rows[f'{i}.0'].split(', sign')[0] for i in range(3)] == [
            'conv, norm, silu', 'conv, norm, SiLU', 'conv, norm, silu']

    def test_no_silu_where_its_input_is_written(self):
        class Written(nn.Module):
            def forward(self, x):
                gate = torch.sigmoid(x)
                return x.add_(1) * gate + x * gate.mul(2)

        class Late(nn.Module):
            def forward(self, x):
                gate = torch.sigmoid(x)
                x.add_(1)
                return x * gate

        for act in Written(), Late():
            model = nn.Sequential(BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12), act, BinaryConv2d(12, 12, 1))
            model, x = pack_(randomise_(model).eval()), torch.randn(2, 12, 5, 5)
            expected = run(model, x)
            fuse_(model)
            assert near(run(model, x), expected)

    def test_a_method_that_is_given_the_layers(self):
        """As mmdet's YOLOXHead: the modules of a level are arguments, which a trace cannot follow."""
        class Head(nn.Module):
            def __init__(self):
                super().__init__()
                self.levels = nn.ModuleList(nn.Sequential(
                    BinaryConv2d(12, 12, 3, padding=1), nn.SyncBatchNorm(12), nn.PReLU(12)) for _ in range(2))

            def forward(self, maps):
                return tuple(map(self.forward_single, maps, self.levels))

            def forward_single(self, x, level):
                return level(x)

        head, maps = pack_(randomise_(Head()).eval()), [torch.randn(1, 12, size, size) for size in (8, 5)]
        with torch.no_grad():
            expected = head(maps)
            report = fuse_(head)
            assert near(head(maps), expected)
        assert report.rows == {f'levels.{i}.0': 'conv, norm, PReLU' for i in range(2)}

    def test_a_forward_whose_arguments_all_have_defaults(self):
        """As mmdet's YOLOV3Neck: what it may be called with is not known, its parts are."""
        class Neck(nn.Module):
            def __init__(self):
                super().__init__()
                self.block = nn.Sequential(BinaryConv2d(12, 12, 1), nn.BatchNorm2d(12))

            def forward(self, maps=None):
                return [self.block(x) for x in maps]

        report = fuse_(pack_(Neck().eval()))
        assert report.parts[''].startswith('forward cannot be traced (it has no argument that must be given)')
        assert report.rows == {'block.0': 'conv, norm'}

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
        model = nn.Sequential(BinaryLinear(12, 20, method='reactnet'), RPReLU(20, -1), BinaryLinear(20, 9, method='bireal'),
                              nn.Hardtanh(), BinaryLinear(9, 12, method='xnor', bias=False))
        for shape in ((5, 12), (2, 3, 12), (2, 3, 4, 12)):
            report = self.check(copy.deepcopy(model), *shape)
            assert report.rows['0'] == 'linear, RPReLU, sign of 2, words only'

    def test_a_norm_after_a_linear_layer_of_sequences(self):
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


@pytest.mark.skipif(bnn_kernels.available_backends()['cpu'] != 'available', reason='the engine was not compiled')
@pytest.mark.parametrize('shape', [(12,), (1, 12), (5, 12), (2, 3, 12)], ids=str)
def test_linear_layers_are_one_call(shape):
    """Packing, layers, shortcut and non-linearities of features: joined, in whatever shape they come."""
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.act = BinaryLinear(12, 12, method='reactnet'), BinaryLinear(12, 12), RPReLU(12, -1)
            self.last = BinaryLinear(12, 7, method='bireal')

        def forward(self, x):
            y = self.act(self.one(x) + x)
            return self.last(self.two(y) + y), y

    model = make_exact_(pack_(Residual().eval()))
    inputs = [exact_image(*shape), exact_image(*shape), exact_image(4, *shape)[2], exact_image(*shape, 2)[..., 0]]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        fuse_(model)
        for x, outs in zip(inputs, expected, strict=True):
            for _ in range(2):
                found = model(x)
                assert equal(found, outs)
                assert [y.stride() for y in found] == [y.stride() for y in outs]
    (segment,) = vars(model)['forward'].plan.program.segments
    assert len(segment.lines) == 4
    assert segment.known[next(iter(segment.known))] is not None, 'one call'


def test_linear_layers_without_rows():
    """As a head for regions of interest where nothing was proposed."""
    layers = BinaryLinear(12, 40, method='reactnet'), nn.PReLU(), BinaryLinear(40, 7, method='bireal')
    model = pack_(nn.Sequential(*layers).eval())
    with torch.no_grad():
        x = torch.zeros(0, 12)
        expected = model(x)
        fuse_(model)
        assert torch.equal(model(x), expected)
        assert expected.shape == (0, 7)


class Optional(nn.Module):
    """What its caller gets beside ``x`` may be None; fx cannot look into it."""

    def forward(self, x, extra=None):
        if x.sum() > 1e9:
            x = -x
        return x, None, extra


class Asking(nn.Module):
    def __init__(self):
        super().__init__()
        self.opaque = Optional()
        self.opaque.conv = nn.Conv2d(1, 1, 1)  # or it would be looked into
        self.block = small(nn.Hardtanh(), None)

    def forward(self, x, extra=None):
        x, nothing, extra = self.opaque(x, extra)
        if nothing is not None:
            x = torch.cat([x, nothing], 1)
        if extra is not None:
            x = x + extra
        return self.block(x)


def test_a_module_that_was_not_traced_returns_none(recwarn):
    """As AnyFlow's embedder of conditions. Mutation: the item that is None goes on as a value."""
    latent, x = randomise_(Asking()).eval(), torch.randn(2, 12, 6, 7)
    model = pack_(copy.deepcopy(latent))
    expected = [run(model, x), run(lambda x: model(x, x), x)]
    report = fuse_(model)
    assert verify(latent, model, x).ok
    for _ in range(2):
        assert near(run(model, x), expected[0])
        assert near(run(lambda x: model(x, x), x), expected[1])
    assert report.parts.keys() == {''}
    assert len(model.forward.plans) == 2
    assert model.forward.plan.arguments.keys() == {'x'}, 'of the call that is to be expected'
    assert verify(latent, copy.deepcopy(model), x, x).ok
    assert not recwarn.list, 'nothing runs unfused'


class Halves(nn.Module):
    """Sums of items of a tuple, as of ``chunk``: the index is a number, not slices of an image."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = BinaryLinear(16, 32), BinaryLinear(16, 16), nn.LayerNorm(16)

    def forward(self, x):
        a, b = self.one(x).chunk(2, -1)
        return self.two(self.norm(a + b) + x)


def test_sums_of_items():
    """Mutation: each index is taken for slices."""
    model, x = pack_(randomise_(Halves()).eval()), torch.randn(2, 5, 16)
    expected = run(model, x)
    fuse_(model)
    assert near(run(model, x), expected)


class Scaled(nn.Module):
    """A sum over a factor, as blocks of diffusers have it, and something that is written into."""

    def __init__(self, factor: float, writes: bool):
        super().__init__()
        self.one, self.two = (BinaryConv2d(16, 16, 3, padding=1, method='bireal') for _ in range(2))
        self.factor, self.writes = factor, writes

    def forward(self, x):
        total = self.one(x) + self.two(x) + x
        out = total / self.factor
        if self.writes:
            out += 1
        return total, out


@pytest.mark.parametrize(('factor', 'writes', 'left'), [(1.0, False, 0), (1, False, 0), (2.0, False, 1), (1.0, True, 1)])
def test_a_factor_of_one_is_left_out(factor, writes, left):
    """Mutations: any factor is; a quotient that is written into, and the sum with it."""
    torch.manual_seed(0)
    packed = pack_(Scaled(factor, writes).eval())
    fused = copy.deepcopy(packed)
    fuse_(fused)
    x = torch.randn(1, 16, 6, 6)
    with torch.no_grad():
        for found, expected in zip(fused(x), packed(x), strict=True):
            torch.testing.assert_close(found, expected)
    (_, part), = fused_parts(fused)
    assert sum(record.target is operator.truediv for record in part.plan.program.records) == left
