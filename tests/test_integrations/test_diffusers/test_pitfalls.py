"""Where diffusers, PEFT and the mathematics would make a binary model wrong in silence; more of it in test_quantizer.py."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bnn_plugins import BNNConfig, CrossTimestepConnection, binarize_, pack_
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.integrations.peft_adapters import refuse_merging
from bnn_plugins.layers import BinaryConv2d, BinaryLayer, BinaryLinear

pytest.importorskip('diffusers')

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention

from bnn_plugins.integrations.diffusers.blocks import BinaryUnit2D, BlockOptions
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel

UNET = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'))
OWN = UNET | {key: tuple(f'Binary{name}' for name in UNET[key]) for key in ('down_block_types', 'up_block_types')}


def converted(method='reactnet'):
    torch.manual_seed(0)
    unet = UNet2DModel(**UNET).eval()
    binarize_(unet, method)
    return unet


def conditional():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        cross_attention_dim=16, attention_head_dim=8, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))


def dit():
    torch.manual_seed(0)
    return DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2,
                                 sample_size=8, norm_num_groups=4, num_embeds_ada_norm=10, dropout=0.0)


@torch.no_grad()
def run(unet):
    torch.manual_seed(1)
    return unet(torch.randn(2, 1, 8, 8), torch.tensor([3, 400])).sample


@pytest.mark.parametrize('build', [converted, lambda: pack_(converted()), lambda: BinaryUNet2DModel(**OWN)],
                         ids=['latent', 'packed', 'own'])
def test_fused_projections(build):
    attention = next(module for module in build().modules() if isinstance(module, Attention))
    with pytest.raises(ValueError, match='binary projections cannot be fused'):
        attention.fuse_projections(fuse=True)


def test_a_float_attention_may_be_fused():
    unet = UNet2DModel(**UNET)
    binarize_(unet, BNNConfig(roles=['resnet_conv']))
    attention = next(module for module in unet.modules() if isinstance(module, Attention))
    attention.fuse_projections()
    assert type(attention.to_qkv) is nn.Linear


def test_no_silu_stands_before_a_sign():
    """It would keep every sign: own units leave it out, and a converted model computes the same without it."""
    x = torch.randn(10_000)
    assert torch.equal(nn.functional.silu(x) >= 0, x >= 0)
    unit = BinaryUnit2D(8, 8, BlockOptions('bireal', 0, None, temb_channels=12, buckets=0, groups=4, eps=1e-5))
    assert not any(isinstance(module, nn.SiLU) for module in unit.modules())
    seen = []
    unit.conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    unit(x, temb)
    assert torch.equal(seen[0], unit.norm(x) + unit.shift(temb))
    unet = converted('bireal')
    expected = run(unet)
    for module in unet.modules():
        if type(module).__name__ == 'ResnetBlock2D' and isinstance(module.conv1, BinaryConv2d):
            module.conv1.register_forward_pre_hook(lambda layer, args: (torch.sign(args[0]) * args[0].abs().sqrt(),))
    assert torch.equal(run(unet), expected), 'any function that keeps signs keeps the output'


def test_attention_scores_stay_real():
    """A softmax is never negative: a plain sign of it says nothing, which the layer notices."""
    for unet in (converted(), BinaryUNet2DModel(**OWN)):
        attention = next(module for module in unet.modules() if isinstance(module, Attention))
        assert isinstance(attention.to_q, BinaryLinear)
        assert not any(isinstance(module, BinaryLayer) for name, module in attention.named_modules()
                       if name.split('.')[0] not in ('to_q', 'to_k', 'to_v', 'to_out'))
    probabilities = torch.randn(4, 64, 64).softmax(-1)
    with pytest.raises(ValueError, match='its sign is always'):
        BinaryLinear(64, 8).train()(probabilities)


def test_merging_an_adapter():
    """PEFT's classes as far as they matter here: ``merge`` would add to the latents."""

    class Linear:
        def __init__(self, base):
            self.base = base

        def get_base_layer(self):
            return self.base

        def merge(self, safe_merge=False, adapter_names=None):
            return f'merged {safe_merge}'

    class _ConvNd(Linear):
        def merge(self, safe_merge=False, adapter_names=None):
            return 'merged convolution'

    refuse_merging(SimpleNamespace(Linear=Linear, _ConvNd=_ConvNd))
    for adapter, kind in ((Linear(BinaryLinear(4, 4)), 'BinaryLinear'), (_ConvNd(BinaryConv2d(4, 4, 1)), 'BinaryConv2d')):
        with pytest.raises(ValueError, match=f'cannot be merged into a {kind}'):
            adapter.merge(safe_merge=True)
    assert Linear(nn.Linear(4, 4)).merge(safe_merge=True) == 'merged True'
    assert _ConvNd(nn.Conv2d(4, 4, 1)).merge() == 'merged convolution'


def test_peft():
    peft = pytest.importorskip('peft')
    unet = converted()
    expected = run(unet)
    config = peft.LoraConfig(r=2, target_modules=['to_q', 'conv1'])
    peft.inject_adapter_in_model(config, unet)
    assert torch.equal(run(unet), expected), 'an adapter begins as nothing'
    adapters = [module for module in unet.modules() if isinstance(module, peft.tuners.lora.layer.LoraLayer)]
    kinds = {type(adapter.get_base_layer()) for adapter in adapters}
    assert kinds == {BinaryConv2d, BinaryLinear}
    for adapter in adapters:
        with pytest.raises(ValueError, match='cannot be merged'):
            adapter.merge()


@pytest.mark.parametrize('build', [converted, lambda: BinaryUNet2DModel(**OWN), lambda: pack_(converted())],
                         ids=['latent', 'own', 'packed'])
def test_layerwise_casting_leaves_binary_layers(build):
    unet = build()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    layers = [module for module in unet.modules() if isinstance(module, BinaryLayer | PackedLayer)]
    dtypes = {t.dtype for layer in layers for t in [*layer.parameters(), *layer.buffers()]}
    assert layers
    assert dtypes <= {torch.float32, torch.int32}
    assert unet.conv_out.weight.dtype in (torch.float8_e4m3fn, torch.float32)
    assert any(p.dtype == torch.float8_e4m3fn for p in unet.parameters()), 'float layers are cast'


def test_packed_operators_in_one_graph():
    """Latent UNets: test_compile_and_gradient_checkpointing."""
    unit = BinaryUnit2D(8, 8, BlockOptions('reactnet', 0, None, temb_channels=12, buckets=0, groups=4, eps=1e-5)).eval()
    pack_(unit)
    x, temb = torch.randn(2, 8, 4, 4), torch.randn(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(unit, backend='aot_eager', fullgraph=True)(x, temb), unit(x, temb))


def test_guidance():
    """Both branches of a step remember their own, in one batch or one behind the other."""
    unet = nn.Module()
    unet.up_blocks = nn.ModuleList([nn.Identity()])
    unet.forward = lambda sample, timestep: unet.up_blocks[0](sample)
    CrossTimestepConnection(unet, initial=0.5)
    a, b = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 10.0)
    unet(torch.cat([a, b]), 20)
    assert unet(torch.cat([2 * a, 2 * b]), 10).flatten().tolist() == [3, 15]
    unet.cross_timestep_connection.reset()
    with torch.no_grad():
        unet(a, 20)
        unet(b, 20)
        assert float(unet(2 * a, 10)) == 3
        assert float(unet(2 * b, 10)) == 15
        assert float(unet(b, 30)) == 10, 'a new run'
        unet.cross_timestep_connection.reset()
        for _ in range(9):  # runs of one step: nothing is mixed, and not everything is kept
            assert float(unet(a, 20)) == 2
        assert len(unet.cross_timestep_connection._memories) <= 4


def test_what_is_not_supported(tmp_path):
    model = conditional()
    model.save_pretrained(tmp_path / 'unet')
    with pytest.raises(ValueError, match='loaded from folders'):
        UNet2DConditionModel.from_single_file(
            str(tmp_path / 'unet/diffusion_pytorch_model.safetensors'), config=str(tmp_path), subfolder='unet',
            quantization_config=BNNConfig(), local_files_only=True)
    with pytest.raises(ValueError, match='onto one device'):
        UNet2DConditionModel.from_pretrained(tmp_path / 'unet', quantization_config=BNNConfig(),
                                             device_map={'conv_in': 'cpu', 'down_blocks': 'meta'})


def test_group_offload_of_packed_layers():
    unet = pack_(converted())
    expected = run(unet)
    device = torch.device('cpu')
    unet.enable_group_offload(onload_device=device, offload_device=device, offload_type='leaf_level')
    assert torch.equal(run(unet), expected)


# --- models with conditions are trained, saved and packed -----------------------------------------------------

CONDITIONS = {'unet': dict(encoder_hidden_states=torch.linspace(-1, 1, 4 * 5 * 16).view(4, 5, 16)),
              'dit': dict(class_labels=torch.tensor([0, 3, 9, 1]))}


@pytest.mark.parametrize(('kind', 'build'), [('unet', conditional), ('dit', dit)], ids=['unet', 'dit'])
def test_conditional_models_train(kind, build, tmp_path):
    model = build()
    binarize_(model, BNNConfig(method='reactnet', roles=['resnet_conv', 'attn_proj', 'ff']))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    x, noise, t = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.tensor([1, 300, 600, 900])
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (model(x, t, **CONDITIONS[kind]).sample - noise).square().mean()
        loss.backward()
        latents = [module.weight for module in model.modules() if isinstance(module, BinaryLayer)]
        assert all(w.grad is not None and w.grad.isfinite().all() for w in latents)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert any(w.grad.any() for w in latents)
    with torch.no_grad():
        expected = model.eval()(x, t, **CONDITIONS[kind]).sample
        model.save_pretrained(tmp_path / 'latent')
        assert torch.equal(type(model).from_pretrained(tmp_path / 'latent')(x, t, **CONDITIONS[kind]).sample, expected)
        pack_(model).save_pretrained(tmp_path / 'packed')
        for packed in (model, type(model).from_pretrained(tmp_path / 'packed')):
            assert torch.equal(packed(x, t, **CONDITIONS[kind]).sample, expected)
