"""Transformers and diffusers: UNet blocks, DiT and Transformer2D models through the quantization backend."""

import pytest
import torch

from bnn_plugins import BNNConfig, binarize_, pack_, summarize
from bnn_plugins.layers import BinaryAttention, BinaryLayer, BinaryTransformerBlock

pytest.importorskip('diffusers')

from diffusers import DiTTransformer2DModel, Transformer2DModel

from bnn_plugins.integrations.diffusers.transformer import BinaryTransformer2D
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel

BLOCKS = dict(down_block_types=('BinaryDownBlock2D', 'BinaryTransformerDownBlock2D'), attention_head_dim=8,
              mid_block_type='BinaryTransformerMidBlock2D', up_block_types=('BinaryTransformerUpBlock2D', 'BinaryUpBlock2D'))


def unet(**changes):
    torch.manual_seed(0)
    sizes = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32),
                 norm_num_groups=8)
    return BinaryUNet2DModel(**{**sizes, **BLOCKS, **changes})


class TestUNet:
    @pytest.mark.parametrize('changes', [{}, dict(time_buckets=5), dict(method='bit'), dict(add_attention=False)], ids=str)
    def test_train_save_load_pack(self, changes, tmp_path):
        model, x, t = unet(**changes), torch.randn(2, 1, 8, 8), torch.tensor([3, 400])
        model(x, t).sample.square().mean().backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not without, 'unused parameters break several processes'
        model.eval()
        with torch.no_grad():
            expected = model(x, t).sample
            model.save_pretrained(tmp_path / 'latent')
            loaded = BinaryUNet2DModel.from_pretrained(tmp_path / 'latent')
            assert torch.equal(loaded(x, t).sample, expected)
            pack_(loaded)
            assert not any(isinstance(m, BinaryAttention) for m in loaded.modules())
            assert torch.equal(loaded(x, t).sample, expected)
            loaded.save_pretrained(tmp_path / 'packed')
            again = BinaryUNet2DModel.from_pretrained(tmp_path / 'packed')
            assert not any(isinstance(m, BinaryLayer | BinaryAttention) for m in again.modules())
            assert torch.equal(again(x, t).sample, expected)

    def test_what_stands_where(self):
        found = [name for name, module in unet().named_modules() if isinstance(module, BinaryTransformerBlock)]
        assert {name.split('.')[0] for name in found} == {'down_blocks', 'mid_block', 'up_blocks'}
        assert unet().mid_block.attentions[0].block.attention.attention.heads == 32 // 8

    def test_expand_is_refused(self):
        with pytest.raises(ValueError, match='Transformer blocks are not made'):
            unet(expand=dict(tau=2))

    def test_tokens_are_pixels(self):
        part = unet().mid_block.attentions[0].eval()
        assert isinstance(part, BinaryTransformer2D)
        x = torch.randn(2, 32, 3, 5)
        expected = part.block(x.movedim(1, -1)).movedim(-1, 1)
        assert torch.equal(part(x, temb=None), expected)


def dit():
    return DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2,
                                 sample_size=8, patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4)


def transformer_2d():
    return Transformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=2, norm_num_groups=4,
                              cross_attention_dim=12)


MODELS = {'dit': (dit, lambda: dict(hidden_states=torch.randn(2, 4, 8, 8), timestep=torch.tensor([3, 7]),
                                    class_labels=torch.tensor([1, 2]))),
          'transformer_2d': (transformer_2d, lambda: dict(hidden_states=torch.randn(2, 16, 6, 5),
                                                          encoder_hidden_states=torch.randn(2, 3, 12)))}


@pytest.mark.parametrize('name', MODELS)
class TestModels:
    def test_a_step_of_training(self, name):
        build, inputs = MODELS[name]
        torch.manual_seed(0)
        model = build()
        report = binarize_(model, BNNConfig('reactnet', roles=['attn_proj', 'ff']))
        assert {row.reason for row in report.binary} == {'role attn_proj', 'role ff'}
        assert all(row.reason for row in report.rows)
        optimizer, batch = torch.optim.Adam(model.parameters(), lr=1e-2), inputs()
        target, losses = torch.randn_like(model(**batch).sample), []
        for _ in range(8):
            torch.manual_seed(1)  # DiT drops labels at random
            loss = (model(**batch).sample - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        assert losses[-1] < losses[0]
        latents = [m.weight for m in model.modules() if isinstance(m, BinaryLayer)]
        assert all(weight.grad.isfinite().all() for weight in latents)
        assert sum(bool(weight.grad.any()) for weight in latents) == len(latents)

    def test_save_load_pack(self, name, tmp_path):
        build, inputs = MODELS[name]
        model, batch = build().eval(), inputs()
        model.save_pretrained(tmp_path / 'float')
        model = type(model).from_pretrained(tmp_path / 'float', quantization_config=BNNConfig('reactnet')).eval()
        with torch.no_grad():
            expected = model(**batch).sample
            model.save_pretrained(tmp_path / 'latent')
            again = type(model).from_pretrained(tmp_path / 'latent').eval()
            assert torch.equal(again(**batch).sample, expected)
            pack_(again)
            assert torch.equal(again(**batch).sample, expected)
            again.save_pretrained(tmp_path / 'packed')
            packed = type(model).from_pretrained(tmp_path / 'packed').eval()
            assert not any(isinstance(m, BinaryLayer) for m in packed.modules())
            assert torch.equal(packed(**batch).sample, expected)


def test_costs_of_the_attention_are_counted():
    model = unet()
    rows = {row.name: row for row in summarize(model, (torch.randn(1, 1, 8, 8), torch.tensor([3]))).rows}
    row = rows['mid_block.attentions.0.block.attention.attention']
    assert row.bops == 2 * 16 * 16 * 32, 'tokens x tokens x channels, for scores and for values'
