"""Networks for the tests of fusion, weights with which all of their floating point arithmetic is exact, and their outputs."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnn_plugins.layers import BinaryConv2d, BinaryLinear, RPReLU
from bnn_plugins.layers.expand import Tile

from .nets import randomise_, same

METHODS = ['binarynet', 'bireal', 'irnet', 'reactnet', 'recu', 'xnor', 'dorefa']
ACTS = {'none': lambda c: None, 'identity': lambda c: nn.Identity(), 'relu': lambda c: nn.ReLU(),
        'relu in place': lambda c: nn.ReLU(inplace=True), 'hardtanh': lambda c: nn.Hardtanh(), 'prelu': lambda c: nn.PReLU(c),
        'prelu of one slope': lambda c: nn.PReLU(), 'rprelu': lambda c: RPReLU(c), 'leaky': lambda c: nn.LeakyReLU(0.5),
        'F.relu': lambda c: F.relu, 'F.hardtanh': lambda c: F.hardtanh, 'silu': lambda c: nn.SiLU()}
EXACT_ACTS = sorted(set(ACTS) - {'silu'})
SHORTCUTS = ('none', 'same', 'written', 'reversed', 'downsample', 'pointwise', 'pooled')


class Block(nn.Module):
    """``act(dropout(norm(tile(conv(x)))) + shortcut(x))``, with or without each of the parts."""

    def __init__(self, rng: random.Random, channels: int, acts: list[str]):
        super().__init__()
        self.kind = rng.choice(SHORTCUTS)
        groups = rng.choice([g for g in (1, 1, 2, 3) if channels % g == 0])
        kernel, dilation = rng.choice([1, 3, (3, 1)]), rng.choice([1, 1, 2])
        stride = rng.choice([1, 2]) if self.kind in ('none', 'downsample', 'pooled') else 1
        self.tiles = rng.choice([1, 1, 2]) if self.kind == 'none' else 1
        outputs = channels
        if self.kind in ('none', 'downsample', 'pointwise'):
            outputs = groups * rng.randint(1, 40 // groups)
        padding = tuple(dilation * (k // 2) for k in (kernel if isinstance(kernel, tuple) else (kernel, kernel)))
        method = rng.choice(METHODS)
        pad_value = 0 if method == 'dorefa' else rng.choice([0, 0, -1, 1])
        self.conv = BinaryConv2d(channels, outputs, kernel, stride, padding, dilation, groups, rng.random() < 0.3,
                                 method=method, pad_value=pad_value)
        self.width = outputs * self.tiles
        self.tile = Tile(self.tiles) if self.tiles > 1 else nn.Identity()
        self.norm = nn.BatchNorm2d(self.width, affine=rng.random() < 0.8) if rng.random() < 0.8 else nn.Identity()
        self.drop = nn.Dropout(0.5)
        self.act = ACTS[rng.choice(acts)](self.width)
        pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
        if self.kind == 'pooled':
            self.pool = pool
        if self.kind in ('downsample', 'pointwise'):
            self.downsample = nn.Sequential(pool, nn.Conv2d(channels, self.width, 1, bias=rng.random() < 0.5),
                                            nn.BatchNorm2d(self.width))

    def shortcut(self, x):
        if self.kind in ('downsample', 'pointwise'):
            return self.downsample(x)
        return self.pool(x) if self.kind == 'pooled' else x

    def forward(self, x):
        out = self.drop(self.norm(self.tile(self.conv(x))))
        if self.kind == 'written':
            out += self.shortcut(x)
        elif self.kind == 'reversed':
            out = self.shortcut(x) + out
        elif self.kind != 'none':
            out = out + self.shortcut(x)
        return out if self.act is None else self.act(out)


class RandomNet(nn.Module):
    """A real stem, blocks some of whose results leave the network, a pooled binary linear head."""

    def __init__(self, seed: int, acts: list[str] = EXACT_ACTS, blocks: int = 4):
        super().__init__()
        rng = random.Random(seed)
        channels = 6 * rng.randint(1, 7)
        act = rng.choice(['relu', 'rprelu', 'prelu'])
        stem = [nn.Conv2d(3, channels, 3, 1, 1), nn.BatchNorm2d(channels), ACTS[act](channels)]
        stem.insert(rng.randint(1, 3), nn.MaxPool2d(2))
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList()
        for _ in range(blocks):
            self.blocks.append(Block(rng, channels, acts))
            channels = self.blocks[-1].width
        self.leaving = [rng.random() < 0.3 for _ in self.blocks]
        self.side = BinaryConv2d(channels, 7, 1, method='reactnet')
        hidden = rng.choice([5, 40])
        self.head = nn.Sequential(BinaryLinear(channels, hidden, method='reactnet'), nn.BatchNorm1d(hidden), nn.PReLU(hidden),
                                  BinaryLinear(hidden, 8, method='bireal'), nn.Hardtanh(), BinaryLinear(8, 3, method='xnor'))

    def forward(self, x):
        x = self.stem(x)
        outs = []
        for block, leaves in zip(self.blocks, self.leaving, strict=True):
            x = block(x)
            if leaves:
                outs.append(x)
        return *outs, self.side(x), self.head(x.amax((2, 3)))


def resnet(depth=18, method='reactnet', **kwargs):
    backbones = pytest.importorskip('bnn_plugins.models.backbones')
    return randomise_(backbones.BNNResNet(depth, base_channels=8, method=method, **kwargs)).eval()


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


def choose(shape, values):
    return torch.tensor(values)[torch.randint(len(values), shape)]


@torch.no_grad()
def make_exact_(packed: nn.Module) -> nn.Module:
    """Powers of two and multiples of 1/8 everywhere: no operation rounds, and values meet their thresholds often."""
    for module in packed.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 2.0**-10
            module.running_var.copy_(choose(module.running_var.shape, [0.25, 1.0, 4.0]) - module.eps)
            module.running_mean.copy_(choose(module.running_mean.shape, [-1.0, -0.5, 0.0, 1.5]))
            if module.affine:
                module.weight.copy_(choose(module.weight.shape, [-1.0, -0.5, 0.0, 0.5, 1.0]))
                module.bias.copy_(choose(module.bias.shape, [-1.0, -0.25, 0.0, 0.5]))
        if type(module) is nn.Conv2d:
            module.weight.copy_(choose(module.weight.shape, [-0.5, 0.0, 0.0, 0.5]))
        if isinstance(module, nn.PReLU):
            module.weight.copy_(choose(module.weight.shape, [-0.5, 0.0, 0.25, 0.5]))
        if isinstance(module, RPReLU):
            module.slope.copy_(choose(module.slope.shape, [-0.5, 0.0, 0.25, 0.5]))
    for name, tensor in packed.state_dict().items():
        last = name.rpartition('.')[2]
        if last == 'weight_scale':
            tensor.copy_(choose(tensor.shape, [0.125, 0.25, 0.5]))
        elif last in ('shift', 'copy_shift', 'gamma', 'zeta') or (last == 'bias' and bool((tensor * 8 % 1 != 0).any())):
            tensor.copy_(choose(tensor.shape, [-0.5, -0.125, 0.0, 0.0, 0.25]))
    return packed


def exact_image(*shape):
    return choose(shape, [-2.0, -1.0, -0.5, 0.0, 0.5, 1.0])


def flat(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


@torch.no_grad()
def run(model, *inputs):
    """The outputs; twice, because a fused model runs otherwise when it knows its inputs' kind."""
    before, first = [x.clone() for x in inputs], flat(model(*inputs))
    kept = [out.clone() for out in first]
    assert same(flat(model(*inputs)), kept)
    assert same(first, kept), 'the second call wrote to the results of the first'
    assert same(inputs, before), 'it wrote to its inputs'
    return first


def near(left, right, share=0.99):
    """Equal but for rounding, and for what a flipped sign changes."""
    return all(torch.isclose(a, b, rtol=1e-4, atol=1e-4).float().mean() >= share for a, b in zip(left, right, strict=True))
