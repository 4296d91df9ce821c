"""Blocks of Transformers: their sums, norms, scales, shortcuts and pool branches in fused steps, equal to the packed model."""

import copy

import pytest
import torch
from torch import nn

import bnn_kernels
import bnn_plugins
from bnn_kernels import PreparedOp
from bnn_plugins.deploy import fuse_, fused_parts, pack_
from bnn_plugins.layers.activations import RPReLU
from bnn_plugins.layers.expand import tile
from bnn_plugins.layers.tokens import LayerScale, TokenNorm, TokenUnit, spread_back
from bnn_plugins.layers.transformer import BinaryTransformerBlock
from bnn_plugins.models.backbones import BNNViT

from .fuse_nets import choose, run
from .nets import randomise_, same

pytestmark = pytest.mark.skipif(bnn_kernels.available_backends()['cpu'] != 'available', reason='the CPU engine is not there')
KINDS = {'pooled': dict(pool=2), 'whole': dict(), 'windows': dict(window=4, shift=2), 'wide': dict(hidden=512),
         'expanded': dict(expand=dict(tau=2, spread=0.5))}


def exact_block(channels: int = 64, branches: tuple = (), probability: str = 'bool', **kind) -> nn.Module:
    """A block with numbers of few bits, and powers of two as factors: no operation rounds."""
    block = BinaryTransformerBlock(channels, 2, branches=branches, method='reactnet', probability=probability,
                                   **(dict(hidden=256) | kind))
    model = nn.Sequential(block).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, TokenNorm):
                module.norm.eps = 0.0
                module.norm.running_mean.copy_(choose(module.norm.running_mean.shape, [-1.0, 0.0, 0.5, 2.0]))
                module.norm.running_var.fill_(1.0)
                module.norm.weight.copy_(choose(module.norm.weight.shape, [-1.0, 1.0]))
                module.norm.bias.copy_(choose(module.norm.bias.shape, [-0.5, 0.0, 1.0]))
            elif isinstance(module, RPReLU):
                for vector, values in (module.gamma, [-0.5, 0.0, 1.0]), (module.slope, [0.5, 1.0]), (module.zeta, [0.0, 0.5]):
                    vector.copy_(choose(vector.shape, values))
            elif isinstance(module, LayerScale):
                module.scale.copy_(choose(module.scale.shape, [-0.5, 1.0]))
                module.shift.copy_(choose(module.shift.shape, [-0.5, 0.0, 1.0]))
            elif isinstance(module, bnn_plugins.layers.BinaryLinear):
                module.weight.copy_(choose(module.weight.shape, [-1.0, 1.0]))
    return pack_(model)


def fused_of(packed: nn.Module) -> nn.Module:
    fused = copy.deepcopy(packed)
    fuse_(fused)
    return fused


def texts(model: nn.Module) -> list[str]:
    return [step.text for _, part in fused_parts(model) for step in part.steps.values()]


@pytest.mark.parametrize('eager', [True, False], ids=['engine', 'torch'])
@pytest.mark.parametrize('kind', KINDS)
def test_blocks_are_exact(kind, eager, monkeypatch):
    """Mutations: a scale of another branch; a shift that is not scaled; tokens spread over columns alone; a shortcut that is
    repeated channel by channel; means over channels that are no neighbours."""
    torch.manual_seed(len(kind))
    packed = exact_block(**KINDS[kind])
    fused = fused_of(packed)
    if not eager:
        monkeypatch.setattr(PreparedOp, 'direct', staticmethod(lambda x: False))
    for size in (12, 12), (6, 9):
        x = choose((2, *size, 64), [-2.0, -0.5, 0.0, 0.5, 1.0])
        with torch.no_grad():
            expected = packed(x)
        assert same(run(fused, x), [expected])


def test_what_is_fused():
    found = ' / '.join(texts(fused_of(exact_block(pool=2, branches=(3, 5)))))
    for text in ('sum of maps, RPReLU', 'sum of maps', 'affine', 'shortcut, RPReLU, means of 4, sign of', 'one convolution'):
        assert text in found


def test_nothing_but_attention_is_left_to_torch():
    """Mutation: a norm of tokens that is no part of a sum."""
    (_, part), = fused_parts(fused_of(exact_block(branches=(3, 5))))
    assert [record.target for record in part.plan.program.records if record.kind == 'module'] == ['0.attention.attention']


class Nested(nn.Module):
    """A scale of a sum with a norm, the spread map first."""

    def __init__(self):
        super().__init__()
        self.norm, self.scale = TokenNorm(16), LayerScale(16)
        self.linear = bnn_plugins.layers.BinaryLinear(16, 16, bias=False, method='bireal')

    def forward(self, x):
        height, width = x.shape[1:3]
        y = self.scale(spread_back(x[:, ::2, ::2], 2, height, width) + self.norm(x))
        return self.linear(y) + y


@torch.no_grad()
def test_a_scale_of_a_sum():
    """Mutations: the shift of a norm is not scaled; maps in the order in which they come, a spread one first."""
    torch.manual_seed(5)
    model = Nested().eval()
    for vector, values in ((model.norm.norm.running_mean, [-1.0, 0.5]), (model.norm.norm.weight, [-1.0, 0.5]),
                           (model.norm.norm.bias, [-0.5, 1.0]),
                           (model.scale.scale, [-0.5, 2.0]), (model.scale.shift, [-1.0, 0.25])):
        vector.copy_(choose(vector.shape, values))
    model.norm.norm.eps = 0.0
    model.linear.weight.copy_(choose(model.linear.weight.shape, [-1.0, 1.0]))
    packed = pack_(model)
    fused, x = fused_of(packed), choose((2, 5, 6, 16), [-1.0, 0.0, 0.5, 2.0])
    assert 'sum of maps' in texts(fused)
    assert same(run(fused, x), [packed(x)])


class Wide(nn.Module):
    """Units that grow and shrink; ``read``: what lies between them is a result, too. A shortcut that is broadcast."""

    def __init__(self, read: bool):
        super().__init__()
        self.read, self.grow, self.shrink = read, TokenUnit(64, 256, 'bireal'), TokenUnit(256, 64, 'bireal')
        self.linear, self.act = bnn_plugins.layers.BinaryLinear(64, 256, method='bireal'), RPReLU(256, channel_dim=-1)

    def forward(self, x, shortcut):
        wide = self.grow(x)
        return self.shrink(wide), wide if self.read else x, self.act(self.linear(x) + tile(shortcut, 4, -1))


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:.*another shape than what is added')
@pytest.mark.parametrize('read', [False, True])
def test_what_else_is_read_is_not_folded(read):
    """Mutations: it is folded all the same; a broadcast shortcut is not repeated."""
    torch.manual_seed(6)
    packed = pack_(randomise_(Wide(read)).eval())
    fused, inputs = fused_of(packed), (torch.randn(2, 5, 64), torch.randn(1, 1, 64))
    assert any('means of' in text for text in texts(fused)) is not read
    for found, expected in zip(run(fused, *inputs), packed(*inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('model', ['vit', 'swin', 'expanded'])
def test_backbones_are_verified(model):
    torch.manual_seed(1)
    more = dict(vit={}, swin=dict(windows=(7, 7, 0, 0), pools=(1, 1, 1, 1)), expanded=dict(expand=dict(tau=2, spread=0.2)))
    latent = randomise_(BNNViT(base_channels=32, depths=(1, 1, 2, 1), image_size=64, **more[model])).eval()
    fused = fused_of(pack_(copy.deepcopy(latent)))
    for size in 64, 72:
        report = bnn_plugins.verify(latent, fused, torch.randn(2, 3, size, size))
        assert report.ok, report.summary()
        assert report.flips <= report.signs / 1000


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_streams_of_16_bits(dtype):
    torch.manual_seed(2)
    latent = randomise_(BNNViT(base_channels=32, depths=(1, 1, 1, 1), image_size=32)).eval()
    fused = pack_(copy.deepcopy(latent))
    fuse_(fused, stream_dtype=dtype)
    report = bnn_plugins.verify(latent, fused, torch.randn(1, 3, 32, 32))
    assert not any(row.violations for row in report.rows), report.summary()


@torch.no_grad()
def test_branches_are_the_means_of_their_windows():
    """Mutation: a window that is not in the middle of the kernel; the mean over the tokens of the map alone."""
    torch.manual_seed(3)
    packed = exact_block(branches=(3, 5), hidden=128)
    for module in packed.modules():
        if isinstance(module, LayerScale):
            module.scale.normal_()
    fused, x = fused_of(packed), torch.randn(1, 7, 9, 64)
    step = next(step for _, part in fused_parts(fused) for step in part.steps.values() if step.text == 'one convolution')
    assert torch.allclose(step(x), packed[0].branches(x), atol=1e-5)


@torch.no_grad()
def test_attention_follows_its_steps():
    """What is made of them is kept: mutation: it is kept when they change."""
    torch.manual_seed(4)
    packed = exact_block(probability='elastic')
    x = torch.randn(1, 8, 8, 64)
    before = packed(x)
    for module in packed.modules():
        if hasattr(module, 'probability'):
            module.probability.size.mul_(1.5)
    assert not torch.equal(packed(x), before)
    assert torch.equal(packed(x), copy.deepcopy(packed)(x))
