"""BNNViT and BNNSwin: the costs of BinaryViT, its block once more, windows, sizes, expansion, packing, training."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnn_plugins
from bnn_plugins.layers import BinaryAttention, BinaryFeedForward, BinaryLayer, BinarySelfAttention, BinaryTransformerBlock
from bnn_plugins.layers.tokens import (
    PoolBranches,
    TokenUnit,
    average_pool,
    from_windows,
    match_features,
    spread_back,
    to_windows,
)
from bnn_plugins.models import BNNSwin, BNNViT
from bnn_plugins.models.backbones.bnn_vit import PatchMerging, PositionalEmbedding
from bnn_plugins.registry import MODELS

ELASTIC = dict(type='elastic', initial=0.2)
SIZES = dict(base_channels=16, depths=(1, 2), heads=(1, 2), ratios=(2, 4), pools=(2, 1), windows=(0, 0), image_size=32,
             out_indices=(0, 1), probability=ELASTIC)
WINDOWS = dict(SIZES, pools=(1, 1), windows=(4, 3))
VARIANTS = {'vit': SIZES, 'windows': WINDOWS, 'tau 2': dict(SIZES, expand=dict(tau=2)),
            'tau 4 apart': dict(SIZES, expand=dict(tau=4, spread=0.5)), 'real merge': dict(SIZES, merge='real'),
            'bit': dict(SIZES, method='bit', probability=dict(type='multi_plane', initial=0.3)),
            'real': dict(SIZES, probability='none'), 'bireal': dict(WINDOWS, method='bireal', probability='bool')}


def build(variant='vit', **changes):
    model = BNNViT(**{**VARIANTS[variant], **changes})
    for name, p in model.named_parameters():  # the branches start at zero: they would hide mistakes
        if 'branches' in name:
            p.data.normal_(std=0.1)
    return model


def images(height=36, width=28, batch=4):
    return torch.randn(batch, 3, height, width)


class TestCosts:
    """BinaryViT's, from its published widths, depths, ratios and pools alone."""

    widths, depths, ratios, pools = (64, 128, 256, 512), (3, 4, 8, 4), (8, 8, 4, 4), (8, 4, 1, 1)

    def test_binaryvit(self):
        weights, bops, sides = 0, 0, (56, 28, 14, 7)
        for width, depth, ratio, pool, side in zip(self.widths, self.depths, self.ratios, self.pools, sides, strict=True):
            tokens, keys = side**2, (side // pool)**2
            square = width**2
            weights += depth * square * (4 + (pool > 1) + 2 * ratio)  # q, k, v, out, reduction; feed-forward
            bops += depth * square * (2 * tokens + (2 + (pool > 1)) * keys + 2 * ratio * tokens)
            bops += depth * 2 * tokens * keys * width  # scores and values
        for width, side in zip(self.widths[:3], sides[1:], strict=True):
            weights += 4 * width * 2 * width
            bops += side**2 * 4 * width * 2 * width
        flops = 56**2 * 4 * 4 * 3 * 64 + 512 * 1000
        model = MODELS.build(dict(type='bnn_plugins.BinaryClassifier', head=dict(num_classes=1000),
                                  backbone=dict(type='bnn_plugins.BNNViT')))
        totals = bnn_plugins.summarize(model, torch.randn(1, 3, 224, 224)).totals
        assert (totals.params_binary, totals.bops, totals.flops) == (weights, bops, flops) == (21196800, 3822206976, 10145792)
        assert totals.ops == flops + bops / 64

    @pytest.mark.parametrize('variant', ['tau 2', 'tau 4 apart'])
    def test_expansion_costs_nothing_binary(self, variant):
        base, wide = (bnn_plugins.summarize(build(name), images(32, 32, 1)).totals for name in ('vit', variant))
        assert (wide.params_binary, wide.bops, wide.flops) == (base.params_binary, base.bops, base.flops)
        assert wide.muls > base.muls

    def test_windows_and_merges(self):
        """Attention over windows costs windows x tokens^2; a real merge is counted as such."""
        model = BNNViT(**dict(WINDOWS, depths=(1, 1), merge='real', windows=(4, 4))).eval()
        rows = {row.name: row for row in bnn_plugins.summarize(model, images(32, 32, 1)).rows}
        assert rows['stages.0.0.attention.attention'].bops == 4 * 2 * 16**2 * 16
        assert rows['merges.0.conv'].flops == 4 * 4 * 4 * 16 * 32


@pytest.mark.parametrize('variant', VARIANTS)
def test_contract(variant, tmp_path):
    """Shapes of odd images, gradients, two-valued weights; copies, files and bits compute the same."""
    model = build(variant)
    outs = model(images())
    assert [tuple(out.shape) for out in outs] == [(4, 16, 9, 7), (4, 32, 5, 4)]
    sum((out * torch.randn_like(out)).sum() for out in outs).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.any(), name
    for layer in model.modules():
        if isinstance(layer, BinaryLayer):
            levels, _ = layer.weight_binarizer(layer.weight)
            assert set(levels.unique().tolist()) == {-1.0, 1.0}
    model.eval()
    x = images(33, 41, 2)
    with torch.no_grad():
        expected = model(x)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        loaded = build(variant).eval()
        loaded.load_state_dict(torch.load(file, weights_only=True))
        packed = bnn_plugins.pack_(copy.deepcopy(model))
        assert not any(isinstance(m, BinaryLayer | BinaryAttention) for m in packed.modules())
        path = bnn_plugins.save_packed(packed, tmp_path / 'vit.safetensors')
        again = bnn_plugins.load_packed_(build(variant), path)
        for twin in (copy.deepcopy(model), loaded, packed, again):
            assert all(torch.equal(out, value) for out, value in zip(twin(x), expected, strict=True))
        assert bnn_plugins.verify(model, packed, x).ok
        report = bnn_plugins.fuse_(packed)
        assert report.fused
        units = [f'{name}.linear' for name, unit in packed.named_modules() if isinstance(unit, TokenUnit)]
        assert units
        assert all('norm, shortcut, RPReLU' in report.rows[name] for name in units), 'left to torch'
        for out, value in zip(packed(x), expected, strict=True):
            torch.testing.assert_close(out, value, rtol=1e-4, atol=1e-4)


def test_ema():
    from mmengine.model import ExponentialMovingAverage
    model, x = build().eval(), images()
    ema = ExponentialMovingAverage(model, momentum=0.5, update_buffers=True)
    ema.update_parameters(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(ema(x), model(x), strict=True))


def test_autocast():
    """Half precision in training: everything learns; in evaluation binary products stay exact, so the packed one agrees."""
    model, x = build(), images()
    with torch.autocast('cpu', torch.bfloat16):
        sum(out.float().square().mean() for out in model(x)).backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
    assert all(m.weight.grad.any() for m in model.modules() if isinstance(m, BinaryLayer))
    model.eval()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        expected = model(x)
        assert all(torch.equal(out, value) for out, value in zip(bnn_plugins.pack_(model)(x), expected, strict=True))


def test_compile():
    torch._dynamo.reset()
    block, x = BinaryTransformerBlock(8, 2, 16, window=2, shift=1, probability='bool').eval(), torch.randn(1, 4, 4, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, backend='aot_eager', fullgraph=True)(x), block(x))
    torch._dynamo.reset()


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model, head = build(out_indices=(1,)), nn.Linear(32, 4)
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=3e-3)
    x, labels = images(16, 16, 16), torch.arange(16) % 4
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(head(model(x)[0].mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


class TestSizes:
    @pytest.mark.parametrize('size', [(1, 1), (3, 50), (21, 4)])
    def test_any_size(self, size):
        for variant in ('vit', 'windows'):
            outs = build(variant).eval()(images(*size, 1))
            assert all(out.isfinite().all() for out in outs)
            rows, columns = (-(-side // 4) for side in size)
            assert [tuple(out.shape[2:]) for out in outs] == [(rows, columns), (-(-rows // 2), -(-columns // 2))]

    def test_positions_are_interpolated(self):
        positions = PositionalEmbedding(3, 4)
        assert torch.equal(positions(torch.zeros(2, 4, 4, 3))[1], positions.table[0].permute(1, 2, 0))
        other = positions(torch.zeros(2, 5, 7, 3))
        torch.testing.assert_close(other[0], F.interpolate(positions.table, (5, 7), mode='bicubic')[0].permute(1, 2, 0))

    def test_swin(self):
        model = BNNSwin(base_channels=12, depths=(1, 1, 2, 1), ratios=(1,) * 4, out_indices=(0, 1, 2, 3)).eval()
        shapes = [tuple(out.shape[1:]) for out in model(images(60, 90, 1))]
        assert shapes == [(12, 15, 23), (24, 8, 12), (48, 4, 6), (96, 2, 3)]
        blocks = [block.attention for stage in model.stages for block in stage]
        assert [block.window for block in blocks] == [7] * 5
        assert [block.shift for block in blocks] == [0, 0, 0, 3, 0]

    def test_in_a_detector(self):
        """mmdet's RetinaNet with the type of its backbone changed: all levels learn."""
        from mmengine.hub import get_config
        from mmengine.registry import DefaultScope
        cfg = get_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py').model
        cfg.backbone = dict(SIZES, type='bnn_plugins.BNNViT', depths=(1,) * 4, heads=(1,) * 4, ratios=(2,) * 4,
                            windows=(0,) * 4, pools=(4, 2, 1, 1), out_indices=(0, 1, 2, 3))
        cfg.neck.in_channels = [16, 32, 64, 128]
        with DefaultScope.overwrite_default_scope('mmdet'):
            detector = MODELS.build(cfg)
        scores, boxes = detector(images(70, 100, 1), mode='tensor')
        assert len(scores) == 5
        sum(out.square().mean() for out in (*scores, *boxes)).backward()
        assert detector.backbone.patch_embed.weight.grad.any()
        assert detector.backbone.stages[0][0].attention.query.linear.weight.grad.any()


class TestExpansion:
    def test_weights_and_shapes(self):
        base, wide = BinaryFeedForward(16, 64), BinaryFeedForward(16, 64, expand=dict(tau=2, spread=0.5))
        for name, shapes in (('grow', [(64, 16), (32, 32)]), ('shrink', [(16, 64), (8, 128)])):
            layers = [getattr(net, name).linear for net in (base, wide)]
            assert [tuple(layer.weight.shape) for layer in layers] == shapes
            assert layers[0].weight.numel() == layers[1].weight.numel()
        assert wide.grow.norm.norm.num_features == wide.grow.act.slope.numel() == 128
        assert torch.equal(wide.grow.linear.activation.shift.detach(), torch.tensor([-0.5, 0.5]).repeat_interleave(16))
        assert wide.shrink.linear.activation.shift.detach().unique().numel() == 4
        x = torch.randn(2, 3, 3, 16)
        assert wide(x).shape == x.shape

    def test_tau_1_is_the_base_network(self):
        torch.manual_seed(0)
        base = build()
        torch.manual_seed(0)
        one = build(expand=dict(tau=1))
        assert all(torch.equal(a, b) for a, b in zip(base.state_dict().values(), one.state_dict().values(), strict=True))

    def test_arithmetic(self):
        """Filters tiled tau^2 times in front of the norm, and tau times behind the second layer."""
        net = BinaryFeedForward(4, 8, 'bireal', nn.Identity, dict(tau=2)).eval()
        net.grow.act = net.shrink.act = nn.Identity()
        x = torch.randn(5, 4)
        sign = lambda t: torch.where(t >= 0, 1.0, -1.0)  # noqa: E731
        wide = torch.cat([x, x], -1)
        grow, shrink = (unit.linear.weight for unit in (net.grow, net.shrink))
        maps = sign(wide) @ sign(grow).T * grow.abs().mean(1)
        hidden = torch.cat([maps] * 4, -1) + torch.cat([wide] * 2, -1)
        out = sign(hidden) @ sign(shrink).T * shrink.abs().mean(1)
        expected = torch.cat([out] * 2, -1) + hidden.unflatten(-1, (4, 4)).mean(-1)
        torch.testing.assert_close(net(x), expected)


class TestParts:
    def test_shortcuts_around_linear_layers(self):
        x = torch.tensor([[1.0, 2, 3, 4]])
        assert match_features(x, 4, 8).tolist() == [[1, 2, 3, 4, 1, 2, 3, 4]]
        assert match_features(x, 4, 2).tolist() == [[1.5, 3.5]], 'means of neighbours'
        with pytest.raises(ValueError, match='4 -> 6 can do neither'):
            TokenUnit(4, 6, 'binaryvit')

    def test_pools_and_back(self):
        x = torch.randn(2, 5, 7, 3)
        pooled = average_pool(x, 2)
        assert pooled.shape == (2, 3, 4, 3)
        torch.testing.assert_close(pooled[:, 2, 3], x[:, 4, 6])
        torch.testing.assert_close(pooled[:, 1, 3], x[:, 2:4, 6].mean(1))
        back = spread_back(pooled, 2, 5, 7)
        assert back.shape == x.shape
        for i, j in ((0, 0), (3, 5), (4, 6)):
            assert torch.equal(back[:, i, j], pooled[:, i // 2, j // 2])

    @pytest.mark.parametrize('shift', [0, 1, 2])
    @pytest.mark.parametrize('size', [(8, 4), (5, 7), (1, 3)])
    def test_windows(self, size, shift):
        x = torch.randn(2, *size, 3)
        windows, inside = to_windows(x, 4, shift)
        assert torch.equal(from_windows(windows, 4, shift, *size), x)
        if inside is None:
            assert shift == 0
            assert size == (8, 4)
        else:
            assert inside.shape == windows.shape[:2]
            assert inside.sum() == 2 * size[0] * size[1], 'each token is in one window'
            assert inside.any(1).all(), 'no window is empty'
        position = torch.arange(size[0])[:, None] * 100 + torch.arange(size[1])
        windows, inside = to_windows(position[None, ..., None].float(), 4, shift)
        for window, mask in zip(windows, [None] * len(windows) if inside is None else inside, strict=True):
            places = window[:, 0][slice(None) if mask is None else mask].long()
            rows, columns = (places // 100 + shift) // 4, (places % 100 + shift) // 4
            assert len(rows.unique()) == len(columns.unique()) == 1

    def test_windowed_attention_is_attention_in_each_window(self):
        layer = BinarySelfAttention(8, 2, window=4, probability=ELASTIC).eval()
        whole = copy.deepcopy(layer)
        whole.window = 0
        x = torch.randn(1, 8, 4, 8)
        with torch.no_grad():
            expected = torch.cat([whole(x[:, :4]), whole(x[:, 4:])], 1)
            torch.testing.assert_close(layer(x), expected)
            small = torch.randn(1, 3, 4, 8)  # one incomplete window: its empty places take no part
            torch.testing.assert_close(layer(small), whole(small))

    def test_pool_and_window_are_refused_together(self):
        with pytest.raises(ValueError, match='not both'):
            BinarySelfAttention(8, 2, pool=2, window=4)

    def test_pool_branches(self):
        branches = PoolBranches(3)
        x = torch.randn(2, 6, 5, 3)
        assert not branches(x).any(), 'they start at zero'
        for scale in branches.scales:
            scale.scale.data.normal_()
            scale.shift.data.normal_()
        padded = F.pad(x, (0, 0, 2, 2, 2, 2))
        expected = 0
        for (height, width), scale in zip(((3, 1), (1, 3), (5, 1), (1, 5)), branches.scales, strict=True):
            mean = sum(padded[:, 2 + i:8 + i, 2 + j:7 + j] for i in range(-(height // 2), height // 2 + 1)
                       for j in range(-(width // 2), width // 2 + 1)) / (height * width)
            expected = expected + mean * scale.scale + scale.shift
        torch.testing.assert_close(branches(x), expected)

    def test_block(self):
        block = BinaryTransformerBlock(8, 2, 16, pool=2, probability=ELASTIC).eval()
        for p in block.parameters():
            p.data = p + 0.1 * torch.randn_like(p)
        x = torch.randn(2, 5, 4, 8)
        a, n1 = block.attention, block.norm1(x)
        q = a.query(n1)
        reduced = a.reduction(average_pool(n1, 2))
        k, v = a.key(reduced), a.value(reduced)
        context = a.attention(*(t.flatten(1, 2) for t in (q, k, v))).view_as(q)
        up = [t.repeat_interleave(2, 1)[:, :5].repeat_interleave(2, 2)[:, :, :4] for t in (k, v)]
        y = x + block.scale1(a.out(a.act(a.norm(context) + q + up[0] + up[1])))
        n2 = block.norm2(y)
        expected = y + block.scale2(block.feed_forward(n2)) + block.branches(n2)
        torch.testing.assert_close(block(x), expected)
        assert block.scale1(torch.ones(8)).detach().equal(block.scale1.scale.detach() + block.scale1.shift.detach())

    @pytest.mark.parametrize('real', [False, True])
    def test_merging(self, real):
        merge = PatchMerging(4, 'bireal', real).eval()
        x = torch.randn(2, 5, 3, 4)
        normed = merge.norm1(x)
        padded = torch.cat([normed, normed[:, -1:]], 1)
        padded = torch.cat([padded, padded[:, :, -1:]], 2).permute(0, 3, 1, 2)
        out = merge.norm2(merge.conv(padded).permute(0, 2, 3, 1))
        if not real:
            out = merge.act(out + torch.cat([average_pool(normed, 2)] * 2, -1))
        assert out.shape == (2, 3, 2, 8)
        torch.testing.assert_close(merge(x), out)


@pytest.mark.parametrize(('build_it', 'error', 'sentence'), [
    (lambda: build(depths=(1,)), ValueError, r'each stage needs one number of each, but got depths=\(1,\)'),
    (lambda: build(merge='bin'), ValueError, "did you mean 'binary'"),
    (lambda: build(out_indices=(2,)), ValueError, 'has the outputs 0 to 1'),
    (lambda: BNNSwin(window=7), TypeError, "unknown argument of BNNSwin 'window'; did you mean 'windows'"),
    (lambda: build(expand=dict(tau=3)), ValueError, 'tau=3 must divide the 16 channels'),
    (lambda: build(expand=dict(tau=2, groups=2)), ValueError, 'with tau and spread only'),
    (lambda: build(method='dorefa'), ValueError, 'binary attention takes signs'),
])
def test_errors(build_it, error, sentence):
    with pytest.raises(error, match=sentence):
        build_it()
