"""Block fusion where a value has several readers, and where an order of layers is none that a fused step can express.

Every network is exact (see ``make_exact_``), so the fused model must give the packed model's numbers bit for bit.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnn_plugins import fuse_, pack_
from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU
from bnn_plugins.layers.expand import Tile

from .fuse_nets import exact_image, make_exact_, run
from .nets import same as equal

CHANNELS = 12


def conv(outputs=CHANNELS, kernel=1, channels=CHANNELS, **options):
    return BinaryConv2d(channels, outputs, kernel, padding=kernel // 2, **(dict(method='bireal') | options))


def norm(channels=CHANNELS):
    return nn.BatchNorm2d(channels)


def check(model, shape=(2, CHANNELS, 6, 7)):
    """Fuse an exact copy of ``model``; returns the report."""
    for seed in range(3):  # values near a threshold are drawn anew
        torch.manual_seed(seed)
        packed = make_exact_(pack_(copy.deepcopy(model).eval()))
        x = exact_image(*shape)
        expected = run(packed, x)
        report = fuse_(packed)
        with warnings.catch_warnings():
            warnings.simplefilter('error')  # what was matched must run as it was matched
            assert equal(run(packed, x), expected), report
    return report


class Readers(nn.Module):
    """Layers that read one stream, which a binary convolution makes or which comes from outside."""

    def __init__(self, *readers, inner=True):
        super().__init__()
        self.first = conv() if inner else nn.Identity()
        self.readers = nn.ModuleList(readers)

    def forward(self, x):
        x = self.first(x)
        return tuple(reader(x) for reader in self.readers)


@pytest.mark.parametrize('inner', [True, False])
class TestReadersOfOneStream:
    """Two readers share their words only where they compare with the same thresholds, in the same groups."""

    def words(self, model):
        """How many times a stream is packed by itself, and by the step that makes it."""
        packed = pack_(model.eval())
        fuse_(packed)
        part = vars(packed)['forward']
        names = [type(step).__name__ for step in part.steps.values()]
        return names.count('PackStep'), sum(step.pack for step in part.steps.values())

    def test_norms_before_the_sign(self, inner):
        """Each of them moves the threshold of its own layer: not the plain reader's, nor that of the other norm."""
        model = Readers(conv(), conv(pre_norm=True), conv(pre_norm=True), conv(), inner=inner)
        check(model)
        packs, in_steps = self.words(model)
        assert packs + in_steps == (4 if inner else 3)  # with the words of the input, where a convolution reads it

    def test_learned_thresholds(self, inner):
        check(Readers(conv(method='reactnet'), conv(), conv(method='reactnet'), conv(method='xnor'), inner=inner))

    def test_shifted_copies(self, inner):
        expand = dict(tau=2, style='drop_in', spread=0.5)
        check(Readers(conv(expand=expand), conv(), conv(expand=expand), inner=inner))

    def test_groups(self, inner):
        check(Readers(conv(groups=2), conv(groups=3), conv(), conv(groups=2), inner=inner))

    def test_bits_that_are_no_signs(self, inner):
        check(Readers(conv(method='dorefa'), conv(), conv(method='dorefa'), inner=inner))


class TestReadersOfLinearLayers:
    def test_learned_thresholds(self):
        layers = [BinaryLinear(CHANNELS, 5, method=method) for method in ('reactnet', 'bireal', 'reactnet', 'xnor')]
        model = Readers(*layers)
        model.first = BinaryLinear(CHANNELS, CHANNELS, method='bireal')
        check(model, (4, CHANNELS))


TILE_ORDERS = {
    'behind a norm': lambda: nn.Sequential(conv(6), norm(6), Tile(2), conv()),
    'behind a norm and a non-linearity': lambda: nn.Sequential(conv(6), norm(6), nn.ReLU(), Tile(2), norm(), conv()),
    'between two norms': lambda: nn.Sequential(conv(6), norm(6), Tile(2), norm(), nn.Hardtanh(), conv()),
    'twice': lambda: nn.Sequential(conv(3), Tile(2), Tile(2), norm(), conv()),
    'of another dimension': lambda: nn.Sequential(conv(), Tile(2, -1), norm(), conv()),
    'of features': lambda: nn.Sequential(BinaryLinear(7, 6, method='bireal'), Tile(2, -1), RPReLU(12, -1),
                                         BinaryLinear(12, 5, method='bireal')),
}


@pytest.mark.parametrize('order', TILE_ORDERS)
def test_tiles(order):
    """A step tiles before its norm. A norm of C channels in front of a tile of 2 C is another thing."""
    check(TILE_ORDERS[order]())


class TileOfASum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.tile, self.norm, self.last = conv(), Tile(2), norm(24), conv(5, channels=24)

    def forward(self, x):
        return self.last(self.norm(self.tile(self.conv(x) + x)))


def test_a_tile_behind_a_shortcut():
    assert check(TileOfASum()).rows['conv'].startswith('conv, shortcut')


class NormOfASum(nn.Module):
    """``act(norm(conv(x) + x))``: no epilogue scales a shortcut."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act, self.last = conv(), norm(), nn.Hardtanh(), conv()

    def forward(self, x):
        return self.last(self.act(self.norm(self.conv(x) + x)))


def test_a_norm_behind_a_shortcut():
    assert check(NormOfASum()).rows['conv'].endswith('; the norm norm comes after the shortcut')


class PreActivation(nn.Module):
    """``conv(act(norm(x))) + norm(x)``, or with the non-linearity's result, or both, as the shortcut."""

    def __init__(self, read, act):
        super().__init__()
        self.read, self.norm, self.act, self.conv = read, norm(), act, conv(kernel=3)

    def forward(self, x):
        normed = self.norm(x)
        acted = self.act(normed)
        out = self.conv(acted)
        return {'norm': lambda: out + normed, 'act': lambda: out + acted, 'all': lambda: (out + normed, acted, normed),
                'once': lambda: out + x}[self.read]()


@pytest.mark.parametrize('act', [nn.Hardtanh(), nn.ReLU(), nn.PReLU(CHANNELS), nn.Identity(), RPReLU(CHANNELS)],
                         ids=lambda act: type(act).__name__)
@pytest.mark.parametrize('read', ['once', 'norm', 'act', 'all'])
def test_a_norm_before_the_sign_that_is_read_twice(read, act):
    """Norm and non-linearity become one step only where nothing else wants the norm's result."""
    model = nn.Sequential(PreActivation(read, act)) if read == 'all' else nn.Sequential(PreActivation(read, act), conv())
    check(model)


class NormReadTwice(nn.Module):
    """The norm behind a convolution has two readers, and one of them reads what follows it, too."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.act, self.two = conv(), norm(), nn.Hardtanh(), conv()

    def forward(self, x):
        normed = self.norm(self.one(x))
        return self.two(self.act(normed)) + normed, self.act(normed)


def test_a_norm_behind_a_convolution_that_is_read_twice():
    check(NormReadTwice())


class Downsample(nn.Module):
    """``conv(x) + norm(pointwise(pool(x)))``; ``shared`` names the part of the shortcut that leaves the network, too."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.conv = shared, BinaryConv2d(CHANNELS, 8, 3, 2, 1, method='bireal')
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        self.pointwise, self.norm = nn.Conv2d(CHANNELS, 8, 1), norm(8)

    def forward(self, x):
        parts = {'pool': self.pool(x)}
        parts['pointwise'] = self.pointwise(parts['pool'])
        parts['norm'] = self.norm(parts['pointwise'])
        out = self.conv(x) + parts['norm']
        return (out,) if self.shared is None else (out, parts[self.shared])


@pytest.mark.parametrize('shared', [None, 'pool', 'pointwise', 'norm'])
def test_a_downsample_some_of_which_leaves(shared):
    check(Downsample(shared))


class RealConvReadTwice(nn.Module):
    """A real convolution whose result is read by its norm and by something else."""

    def __init__(self, shared):
        super().__init__()
        self.shared, self.one, self.real, self.norm, self.act = shared, conv(), nn.Conv2d(CHANNELS, 8, 1), norm(8), nn.ReLU()

    def forward(self, x):
        made = self.real(self.one(x))
        normed = self.norm(made)
        acted = self.act(normed)
        return {'conv': (acted, made), 'norm': (acted, normed), 'neither': (acted,)}[self.shared]


@pytest.mark.parametrize('shared', ['conv', 'norm', 'neither'])
def test_a_real_convolution_that_is_read_twice(shared):
    check(RealConvReadTwice(shared))


class Stem(nn.Module):
    """A real convolution of an image, whose norm or result leaves the network, too."""

    def __init__(self, shared):
        super().__init__()
        self.shared = shared
        self.conv, self.pool, self.norm, self.act = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.MaxPool2d(2), norm(), nn.ReLU()
        self.body, self.other = conv(method='reactnet'), conv()

    def forward(self, x):
        made = self.conv(x)
        pooled = self.pool(made)
        normed = self.norm(pooled)
        acted = self.act(normed)
        leaving = {'conv': made, 'pool': pooled, 'norm': normed, 'act': acted}
        return self.body(acted), self.other(acted), *([] if self.shared is None else [leaving[self.shared]])


@pytest.mark.parametrize('shared', [None, 'conv', 'pool', 'norm', 'act'])
def test_a_stem_some_of_which_leaves(shared):
    check(Stem(shared), (2, 3, 10, 12))


class InPlace(nn.Module):
    """Non-linearities in place: what they wrote to is what the shortcut reads."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two, self.three = conv(), norm(), conv(), conv()

    def forward(self, x):
        out = self.norm(self.one(x))
        early = self.two(out)
        acted = F.relu(out, inplace=True)
        return self.three(acted) + out, early


def test_a_non_linearity_in_place_behind_a_reader():
    check(InPlace())


class SharedShortcut(nn.Module):
    """A shortcut that two sums read: the first must not take its memory."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Sequential(conv(), norm()), conv(), conv()

    def forward(self, x):
        x = self.stem(x)
        first = self.one(x) + x
        return self.two(first) + x, first


def test_a_shortcut_that_is_read_twice():
    check(SharedShortcut())
