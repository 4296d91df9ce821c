"""Transformers of torch and mmdet become binary: attention taken apart, roles with reasons, training, packing."""

import copy

import pytest
import torch
from torch import nn

import bnn_plugins
from bnn_plugins import BNNConfig, binarize_, pack_
from bnn_plugins.deploy import PackedAttention
from bnn_plugins.layers import BinaryAttention, BinaryLayer, BinaryLinear
from bnn_plugins.layers.multihead import SplitMultiheadAttention

KINDS = {'plain': {}, 'no_bias': dict(bias=False), 'batch_first': dict(batch_first=True), 'widths': dict(kdim=6, vdim=5)}
MASKS = {'none': {}, 'padding': dict(key_padding_mask=torch.tensor([[False, False, True, True], [False] * 4])),
         'bool': dict(attn_mask=torch.rand(3, 4) > 0.7), 'float': dict(attn_mask=torch.randn(3, 4)),
         'heads': dict(attn_mask=torch.randn(4, 3, 4),
                       key_padding_mask=torch.tensor([[False] * 4, [False, True, True, False]]))}
MASKS['bool']['attn_mask'][:, 0] = False  # torch gives NaN where nothing is left


def inputs(kind):
    shapes = [(3, 2, 8), (4, 2, KINDS[kind].get('kdim', 8)), (4, 2, KINDS[kind].get('vdim', 8))]
    return [torch.randn(shape).transpose(0, 1) if kind == 'batch_first' else torch.randn(shape) for shape in shapes]


class TestSplit:
    @pytest.mark.parametrize('mask', MASKS)
    @pytest.mark.parametrize('kind', KINDS)
    def test_computes_the_same(self, kind, mask):
        attention = nn.MultiheadAttention(8, 2, **KINDS[kind]).eval()
        split, x = SplitMultiheadAttention(copy.deepcopy(attention)), inputs(kind)
        for options in (dict(need_weights=False), {}, dict(average_attn_weights=False)):
            expected, found = (layer(*x, **MASKS[mask], **options) for layer in (attention, split))
            torch.testing.assert_close(found, expected)
        fresh = SplitMultiheadAttention(nn.MultiheadAttention(8, 2, **KINDS[kind]))
        fresh.load_state_dict(attention.state_dict())
        torch.testing.assert_close(fresh(*x)[0], attention(*x)[0])

    def test_without_a_batch(self):
        attention = nn.MultiheadAttention(8, 2).eval()
        x, mask = torch.randn(5, 8), torch.tensor([False, True, False, False, True])
        for options in ({}, dict(key_padding_mask=mask)):
            torch.testing.assert_close(SplitMultiheadAttention(attention)(x, x, x, **options), attention(x, x, x, **options))

    def test_what_stays_whole(self):
        model = nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.Linear(8, 8))
        report = binarize_(model, 'reactnet')
        assert type(model[0]) is nn.MultiheadAttention
        assert 'uses its weight without calling it' in report.rows[0].reason
        assert not report.replaced

    def test_torch_layer(self):
        """torch's encoder layer has a fast path that reads the parameters of its attention."""
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        report = binarize_(layer, 'reactnet')
        assert [row.name for row in report.binary] == ['self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj',
                                                       'self_attn.out_proj', 'linear1', 'linear2']
        assert 'SplitMultiheadAttention' in report.replaced['self_attn']
        x = torch.randn(2, 5, 8)
        layer(x).sum().backward()
        assert all(m.weight.grad.any() for m in layer.modules() if isinstance(m, BinaryLinear))
        layer.eval()
        with torch.no_grad():
            expected = layer(x, src_key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))
            assert torch.equal(pack_(layer)(x, src_key_padding_mask=torch.zeros(2, 5, dtype=torch.bool)), expected)


class TestBinaryScores:
    def test_against_its_parts(self):
        model = nn.Sequential(nn.MultiheadAttention(8, 2))
        report = binarize_(model, BNNConfig('reactnet', attention='max_relative'))
        assert report.replaced['0'].endswith('scores binary')
        attention, x, mask = model[0].eval(), torch.randn(5, 3, 8), torch.rand(3, 5) > 0.6
        core = BinaryAttention(8, 2, 'reactnet', 'max_relative').eval()
        q, k, v = (getattr(attention, name)(x.transpose(0, 1)) for name in ('q_proj', 'k_proj', 'v_proj'))
        for options, keep in (({}, None), (dict(key_padding_mask=mask), ~mask)):
            out, weights = attention(x, x, x, **options)
            torch.testing.assert_close(out, attention.out_proj(core(q, k, v, keep)).transpose(0, 1))
            assert weights is None

    def test_dtype(self):
        model = nn.Sequential(nn.MultiheadAttention(8, 2)).double()
        binarize_(model, BNNConfig('reactnet', attention='elastic'))
        assert {p.dtype for p in model.parameters()} == {torch.float64}

    @pytest.mark.parametrize('padding', [False, True])
    def test_masks_of_queries(self, padding):
        model = nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))
        binarize_(model, BNNConfig('reactnet', attention='bool'))
        x, causal = torch.randn(2, 6, 8), torch.ones(6, 6, dtype=torch.bool).triu(1)
        options = dict(key_padding_mask=torch.tensor([[False] * 6, [False] * 4 + [True] * 2])) if padding else {}
        with torch.no_grad():
            attention = model[0].eval()
            expected = attention(x, x, x, attn_mask=causal, **options)[0]
            other = x.clone()
            other[:, 3:] = torch.randn(2, 3, 8)
            assert torch.equal(attention(other, other, other, attn_mask=causal, **options)[0][:, :3], expected[:, :3])
            assert torch.equal(pack_(model)[0](x, x, x, attn_mask=causal, **options)[0], expected)

    def test_detr(self):
        model, batch = detr()
        binarize_(model, BNNConfig('reactnet', attention=dict(type='elastic', initial=0.2)))
        out = model(**batch)
        (out * torch.randn_like(out)).sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert all(p.grad.any() for name, p in model.named_parameters() if name.endswith(('weight', 'shift', 'size')))
        with torch.no_grad():
            expected = model.eval()(**batch)
            packed = pack_(copy.deepcopy(model))
            assert any(isinstance(m, PackedAttention) for m in packed.modules())
            assert torch.equal(packed(**batch), expected)

    def test_what_cannot_be(self):
        model = nn.Sequential(nn.MultiheadAttention(8, 2))
        binarize_(model, BNNConfig('reactnet', attention='bool'))
        x = torch.randn(5, 3, 8)
        for mask in (torch.zeros(5, 5), torch.zeros(6, 5, 5, dtype=torch.bool)):
            with pytest.raises(ValueError, match='masks of bool for all heads alike'):
                model[0](x, x, x, attn_mask=mask)
        with pytest.raises(ValueError, match=r'no nn\.MultiheadAttention whose scores could become binary'):
            binarize_(nn.Sequential(nn.Linear(4, 4)), BNNConfig('reactnet', attention='bool'))
        with pytest.raises(ValueError, match="did you mean 'elastic'"):
            BNNConfig('reactnet', attention='elastik')
        with pytest.raises(ValueError, match='takes signs'):
            BNNConfig('dorefa', attention='bool')


def encoder(name):
    """The encoder of a detector of mmdet, two layers of width 32."""
    pytest.importorskip('mmdet')
    from mmdet.models.layers import DeformableDetrTransformerEncoder, DetrTransformerEncoder
    from mmengine.hub import get_config
    from mmengine.registry import DefaultScope
    cfg = get_config(f'mmdet::{name}').model.encoder
    cfg.num_layers = 2
    cfg.layer_cfg.self_attn_cfg.update(embed_dims=32, **({} if 'deformable' in name else dict(num_heads=4)))
    cfg.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=64)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return (DeformableDetrTransformerEncoder if 'deformable' in name else DetrTransformerEncoder)(**cfg)


def detr():
    model = encoder('detr/detr_r50_8xb2-150e_coco.py')
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[1, 9:] = True
    return model, dict(query=torch.randn(2, 12, 32), query_pos=torch.randn(2, 12, 32), key_padding_mask=mask)


def deformable_detr():
    model = encoder('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py')
    shapes = torch.tensor([[8, 8], [4, 4], [2, 2], [1, 1]])
    tokens = int(shapes.prod(1).sum())
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    return model, dict(query=torch.randn(2, tokens, 32), query_pos=torch.randn(2, tokens, 32), spatial_shapes=shapes,
                       key_padding_mask=torch.zeros(2, tokens, dtype=torch.bool), level_start_index=starts,
                       valid_ratios=torch.ones(2, 4, 2))


def swin():
    pytest.importorskip('mmdet')
    from mmdet.models import SwinTransformer
    model = SwinTransformer(embed_dims=12, depths=(1, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=4)
    return model, dict(x=torch.randn(2, 3, 50, 38))


ENCODERS = {
    'detr': (detr, {'self_attn.attn.q_proj', 'self_attn.attn.k_proj', 'self_attn.attn.v_proj', 'self_attn.attn.out_proj',
                    'ffn.layers.0.0', 'ffn.layers.1'}, {}),
    'deformable detr': (deformable_detr, {'self_attn.value_proj', 'self_attn.output_proj', 'ffn.layers.0.0', 'ffn.layers.1'},
                        {'self_attn.sampling_offsets': 'positions and weights of samples',
                         'self_attn.attention_weights': 'positions and weights of samples'}),
    'swin': (swin, {'attn.w_msa.qkv', 'attn.w_msa.proj', 'ffn.layers.0.0', 'ffn.layers.1'},
             {'projection': 'reads the image', 'reduction': 'projection of the real-valued stream'}),
}


def first(out):
    return out if isinstance(out, torch.Tensor) else out[-1]


@pytest.mark.parametrize('name', ENCODERS)
def test_encoders_of_mmdet(name):
    build, binary, real = ENCODERS[name]
    model, batch = build()
    report = binarize_(model, 'reactnet')
    assert {row.name.split('.', 2 if name != 'swin' else 4)[-1] for row in report.binary} == binary
    for row in report.rows:
        if not row.binary:
            assert row.reason.startswith(real[next(key for key in real if row.name.endswith(key))]), row
    assert str(report)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    target, losses = torch.randn_like(first(model(**batch))), []
    for _ in range(6):
        loss = (first(model(**batch)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(m.weight.grad.any() for m in model.modules() if isinstance(m, BinaryLayer))
    model.eval()
    with torch.no_grad():
        expected = first(model(**batch))
        packed = pack_(copy.deepcopy(model))
        assert not any(isinstance(m, BinaryLayer) for m in packed.modules())
        assert torch.equal(first(packed(**batch)), expected)


def test_a_detector_through_its_config():
    """``type='bnn_plugins.binarized'`` around mmdet's Swin, with a float checkpoint's names for the rules."""
    pytest.importorskip('mmdet')
    from bnn_plugins.registry import MODELS
    module = dict(type='mmdet.SwinTransformer', embed_dims=12, depths=(1, 1), num_heads=(1, 2), strides=(4, 2),
                  out_indices=(0, 1), window_size=4)
    model = MODELS.build(dict(type='bnn_plugins.binarized', method='reactnet', module=module,
                              rules={'stages.0.blocks.0.attn.*': 'float'}))
    names = [name for name, m in model.named_modules() if isinstance(m, BinaryLayer)]
    assert names
    assert not any('stages.0.blocks.0.attn' in name for name in names)


def test_rules_see_the_projections():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    report = binarize_(model, BNNConfig('reactnet', rules={'0.[qk]_proj': 'float'}))
    assert [row.name for row in report.binary] == ['0.v_proj', '0.out_proj', '1']
    assert bnn_plugins.BinarizationReport.of(model).rows[0].kind == 'Linear'
