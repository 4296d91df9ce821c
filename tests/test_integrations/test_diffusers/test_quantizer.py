"""The quantizer of diffusers: real models and pipelines, real folders."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import bnn_plugins
from bnn_plugins import BNNConfig, binarize_, pack_
from bnn_plugins.deploy import PackedLayer
from bnn_plugins.deploy.file import checksum
from bnn_plugins.layers import BinaryConv2d, BinaryLayer, BinaryLinear

diffusers = pytest.importorskip('diffusers')

from diffusers import (  # noqa: E402
    AutoModel,
    DDIMPipeline,
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxControlNetModel,
    FluxTransformer2DModel,
    PipelineQuantizationConfig,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.quantizers import auto  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402

from bnn_plugins.integrations.diffusers.quantizer import BNNQuantizer, register  # noqa: E402

UNET = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
            down_block_types=('DownBlock2D', 'AttnDownBlock2D'), up_block_types=('AttnUpBlock2D', 'UpBlock2D'))


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return UNet2DModel(**UNET).eval()


@pytest.fixture
def float_folder(unet, tmp_path):
    unet.save_pretrained(tmp_path / 'float')
    return tmp_path / 'float'


@torch.no_grad()
def run(model, size=8):
    torch.manual_seed(1)
    return model(torch.randn(2, 1, size, size), torch.tensor([3, 400])).sample


def binary_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, BinaryLayer)}


def images(pipe):
    return pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type='np').images


# --- loading and saving --------------------------------------------------------------------------------------

def test_float_checkpoint_becomes_latents(unet, float_folder):
    model = UNet2DModel.from_pretrained(float_folder, quantization_config=BNNConfig(method='reactnet'))
    binarize_(unet, 'reactnet')
    assert binary_names(model) == binary_names(unet)
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    for name, value in unet.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(run(model), run(unet))


@pytest.mark.parametrize('method', ['recu', 'dorefa', 'irnet', dict(type='dorefa', w_bits=2, a_bits=2)], ids=str)
def test_learned_scales_get_their_initial_values(float_folder, unet, method):
    torch.manual_seed(5)
    model = UNet2DModel.from_pretrained(float_folder, quantization_config=BNNConfig(method=method))
    torch.manual_seed(5)
    binarize_(unet, dict(method=method))
    assert torch.equal(run(model), run(unet))


@pytest.mark.parametrize('packed', [False, True])
def test_round_trip(unet, tmp_path, packed):
    binarize_(unet, 'reactnet')
    expected = run(unet)
    if packed:
        pack_(unet)
    unet.save_pretrained(tmp_path)
    for loaded in (UNet2DModel.from_pretrained(tmp_path), AutoModel.from_pretrained(str(tmp_path))):
        assert any(isinstance(m, PackedLayer) for m in loaded.modules()) == packed
        assert torch.equal(run(loaded), expected)
        assert loaded.is_quantized == packed
        assert loaded.hf_quantizer.is_trainable != packed
        assert loaded.config.quantization_config.method == 'reactnet'


def test_packed_pipeline_in_a_process_that_knows_nothing(unet, tmp_path):
    binarize_(unet, 'reactnet')
    pipe = DDIMPipeline(pack_(unet), DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    torch.save(torch.from_numpy(images(pipe)), tmp_path / 'expected.pt')
    script = ('import torch, bnn_plugins\n'
              'from bnn_plugins.layers import BinaryConv2d\n'
              'def never(*args): raise AssertionError("the latent layer was called")\n'
              'BinaryConv2d._conv_forward = never\n'
              'from diffusers import DDIMPipeline\n'
              f'pipe = DDIMPipeline.from_pretrained({str(tmp_path)!r})\n'
              'images = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images\n'
              f'assert (images == torch.load({str(tmp_path / "expected.pt")!r}).numpy()).all()\n')
    subprocess.run([sys.executable, '-c', script], check=True)


def test_pipeline_quantization_config(unet, tmp_path):
    DDIMPipeline(unet, DDIMScheduler()).save_pretrained(tmp_path)
    config = PipelineQuantizationConfig(quant_mapping={'unet': BNNConfig(method='bireal')})
    pipe = DDIMPipeline.from_pretrained(tmp_path, quantization_config=config)
    assert binary_names(pipe.unet)
    pipe.save_pretrained(tmp_path / 'binary')
    again = DDIMPipeline.from_pretrained(tmp_path / 'binary')
    assert (images(again) == images(pipe)).all()
    assert json.loads((tmp_path / 'binary/model_index.json').read_text())['unet'] == ['diffusers', 'UNet2DModel']


def test_loader_shim(unet, tmp_path):
    binarize_(unet, 'reactnet')
    pipe = DDIMPipeline(unet, DDIMScheduler())
    pipe.save_pretrained(tmp_path)
    bnn_plugins.export_loader_shim(tmp_path)
    script = ('from diffusers import DDIMPipeline\n'
              f'pipe = DDIMPipeline.from_pretrained({str(tmp_path)!r}, trust_remote_code=True)\n'
              'assert any(type(m).__name__ == "BinaryConv2d" for m in pipe.unet.modules())\n')
    subprocess.run([sys.executable, '-c', script], check=True)
    with pytest.raises(KeyError, match="no component 'vae'"):
        bnn_plugins.export_loader_shim(tmp_path, 'vae')
    with pytest.raises(FileNotFoundError, match=r'no model_index\.json'):
        bnn_plugins.export_loader_shim(tmp_path / 'unet')


def test_sharded_packed_checkpoint(unet, tmp_path):
    binarize_(unet, 'reactnet')
    pack_(unet)
    unet.save_pretrained(tmp_path, max_shard_size='20KB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    assert torch.equal(run(UNet2DModel.from_pretrained(tmp_path)), run(unet))


@pytest.mark.parametrize('damage', ['alter', 'layout', 'other'])
def test_damaged_packed_weights(unet, tmp_path, damage):
    binarize_(unet, 'reactnet')
    pack_(unet).save_pretrained(tmp_path)
    path = tmp_path / 'diffusion_pytorch_model.safetensors'
    with safe_open(path, framework='pt') as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    bits = next(key for key in tensors if key.endswith('weight_bits'))
    if damage == 'alter':
        tensors[bits] = tensors[bits] ^ 1
    elif damage == 'layout':
        metadata['bnn_layout_version'] = '7'
    save_file(tensors, path, metadata)
    if damage == 'other':
        config = json.loads((tmp_path / 'config.json').read_text()) | dict(block_out_channels=[16, 64])
        (tmp_path / 'config.json').write_text(json.dumps(config))
    message = {'alter': 'was altered after it was written', 'layout': 'version 7', 'other': 'for another config'}[damage]
    with pytest.raises(ValueError, match=message):
        UNet2DModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(('old', 'new', 'message'), [
    ('"pad_value": 0', '"pad_value": 1', r'the layer .*pad_value 1 .* in the model, but .*pad_value 0 '),
    ('"method": "reactnet"', '"method": "bireal"', r'the layer .*method bireal.* in the model, but .*method reactnet'),
    ('"layers_per_block": 1', '"layers_per_block": 2', r'the layer .* is "conv .* in the model, but "conv .* in the file'),
    ('"mid_block_type": "UNetMidBlock2D"', '"mid_block_type": null', r'the layer .* is "not binary" in the model, but'),
    ('"class_embed_type": null', '"class_embed_type": "timestep"', '4 tensors missing in the file and 0 unknown to the model'),
    ('"resnet_time_scale_shift": "default"', '"resnet_time_scale_shift": "scale_shift"', '0 tensors missing .* and 2 unknown'),
])
def test_packed_weights_for_another_config(unet, tmp_path, old, new, message):
    """Bits of the same shapes that would mean something else, and tensors of which diffusers would only warn."""
    binarize_(unet, 'reactnet')
    pack_(unet).save_pretrained(tmp_path)
    config = tmp_path / 'config.json'
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf'model\.safetensors is for another config: .*{message}'):
        UNet2DModel.from_pretrained(tmp_path)


def test_a_folder_of_an_earlier_version(unet, tmp_path):
    """Its metadata has no signatures, and its checksum covers the tensors only."""
    binarize_(unet, 'reactnet')
    expected = run(pack_(unet))
    unet.save_pretrained(tmp_path)
    path = tmp_path / 'diffusion_pytorch_model.safetensors'
    with safe_open(path, framework='pt') as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    signatures = json.loads(metadata.pop('bnn_layers'))
    assert signatures == {name: m.signature() for name, m in unet.named_modules() if isinstance(m, PackedLayer)}
    save_file(tensors, path, metadata | {'bnn_checksum': checksum(tensors, {})})
    assert torch.equal(run(UNet2DModel.from_pretrained(tmp_path)), expected)
    save_file(tensors, path, metadata | {'bnn_layers': json.dumps(signatures | {'conv_in': 'conv'})})
    with pytest.raises(ValueError, match='was altered after it was written'):
        UNet2DModel.from_pretrained(tmp_path)


# --- registration --------------------------------------------------------------------------------------------

def test_registration_is_idempotent():
    before = dict(auto.AUTO_QUANTIZER_MAPPING)
    register(auto)
    assert before == auto.AUTO_QUANTIZER_MAPPING
    assert auto.AUTO_QUANTIZER_MAPPING['bnn'] is BNNQuantizer
    assert auto.AUTO_QUANTIZATION_CONFIG_MAPPING['bnn'] is BNNConfig


# --- which layers --------------------------------------------------------------------------------------------

def test_what_stays_float(unet):
    report = binarize_(unet, 'reactnet')
    stays = {row.name: row.reason for row in report.rows if not row.binary}
    assert {'conv_in', 'conv_out', 'time_embedding.linear_1', 'down_blocks.0.resnets.0.time_emb_proj',
            'down_blocks.1.resnets.0.conv_shortcut'} <= set(stays)
    assert 'timestep' in stays['time_embedding.linear_1']
    kinds = {type(m) for name, m in unet.named_modules() if 'conv1' in name or 'to_q' in name}
    assert kinds >= {BinaryConv2d, BinaryLinear}


@pytest.mark.parametrize(('roles', 'marks'), [
    (['resnet_conv'], ('conv1', 'conv2')), (['attn_proj'], ('to_q', 'to_k', 'to_v', 'to_out.0')),
    (['resample_conv'], ('samplers.0.conv',))])
def test_roles(unet, roles, marks):
    binarize_(unet, BNNConfig(roles=roles))
    assert binary_names(unet)
    assert all(name.endswith(marks) for name in binary_names(unet))


def test_unknown_role():
    with pytest.raises(ValueError, match=r"resnet_convs.*'resnet_conv'"):
        BNNConfig(roles=['resnet_convs'])


def test_conditional_unet_and_transformer():
    condition = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        cross_attention_dim=16, attention_head_dim=8, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
        up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'))
    report = binarize_(condition, BNNConfig(roles=['resnet_conv', 'attn_proj', 'ff']))
    assert {'role ff', 'role attn_proj', 'role resnet_conv'} <= {row.reason for row in report.rows if row.binary}
    assert condition(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 5, 16)).sample.isfinite().all()
    dit = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8,
                                norm_num_groups=4, num_embeds_ada_norm=10)
    binarize_(dit, 'reactnet')
    assert binary_names(dit)
    assert not any('pos_embed' in name or 'norm1' in name or name.startswith('proj_out') for name in binary_names(dit))


def test_a_layer_with_two_names_is_swapped_under_both():
    from diffusers.models.downsampling import Downsample2D
    model = nn.Sequential(Downsample2D(8, use_conv=True))
    binarize_(model, 'reactnet')
    assert isinstance(model[0].conv, BinaryConv2d)
    assert model[0].conv is model[0].Conv2d_0


def test_a_layer_whose_weight_is_read_stays_float():
    from diffusers.models.downsampling import FirDownsample2D
    model = nn.Sequential(FirDownsample2D(8, use_conv=True, out_channels=8), nn.Conv2d(8, 8, 3))
    report = binarize_(model, 'reactnet')
    assert 'FirDownsample2D uses its weight without calling it' in str(report.rows[0].reason)
    assert not report.rows[0].binary


# --- what rebuilds a model, dtypes ---------------------------------------------------------------------------

def test_from_config(unet, tmp_path):
    binarize_(unet, BNNConfig(method='bireal'))
    unet.save_pretrained(tmp_path)
    for config in (tmp_path, tmp_path / 'config.json', str(tmp_path), unet.config):
        assert binary_names(bnn_plugins.from_config(UNet2DModel, config)) == binary_names(unet)
    again, _ = UNet2DModel.from_config(unet.config, return_unused_kwargs=True)
    assert binary_names(again) == binary_names(UNet2DModel.from_config(unet.config)) == binary_names(unet)
    assert not binary_names(bnn_plugins.from_config(UNet2DModel, UNET))
    with pytest.raises(FileNotFoundError, match='there is no config at'):
        bnn_plugins.from_config(UNet2DModel, tmp_path / 'nowhere')


def test_copies_that_diffusers_makes(unet, tmp_path):
    """Mutation: without ``honour_config`` the average cannot be saved, and the ControlNet drops all thresholds in silence."""
    binarize_(unet, 'reactnet')
    average = EMAModel(unet.parameters(), model_cls=UNet2DModel, model_config=unet.config)
    average.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path).state_dict()
    assert again.keys() == unet.state_dict().keys()
    assert all(torch.equal(again[name], value) for name, value in unet.state_dict().items())

    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8))
    binarize_(transformer, 'reactnet')
    copy = FluxControlNetModel.from_transformer(transformer, 1, 1, attention_head_dim=16, num_attention_heads=2).state_dict()
    theirs = {name: value for name, value in transformer.state_dict().items() if 'transformer_blocks' in name}
    assert any('shift' in name for name in theirs)
    assert all(torch.equal(copy[name], value) for name, value in theirs.items())


def test_a_float_model_that_calls_itself_binary(unet, tmp_path):
    unet.save_pretrained(tmp_path)
    binarize_(unet, 'reactnet')
    unet.save_config(tmp_path)
    with pytest.raises(ValueError, match='its weights are of a float model'):
        UNet2DModel.from_pretrained(tmp_path)


def test_latent_models_change_dtype_and_packed_ones_refuse(unet):
    binarize_(unet, 'reactnet')
    pipe = DDIMPipeline(unet, DDIMScheduler()).to(torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    pack_(unet.float())
    with pytest.raises(ValueError, match='quantized'):
        unet.to(torch.float16)
    assert unet.dtype == torch.float32  # of a float parameter, not of the words


def test_words_survive_a_torch_dtype(unet, tmp_path):
    binarize_(unet, 'reactnet')
    pack_(unet).save_pretrained(tmp_path)
    loaded = UNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    words = [value for name, value in loaded.state_dict().items() if name.endswith('weight_bits')]
    assert {w.dtype for w in words} == {torch.int32}
    assert loaded.dtype == torch.bfloat16


def test_low_cpu_mem_usage_false_is_refused(float_folder):
    with pytest.raises(ValueError, match='low_cpu_mem_usage'):
        UNet2DModel.from_pretrained(float_folder, quantization_config=BNNConfig(), low_cpu_mem_usage=False)


def test_config_of_the_call_loses_against_the_checkpoint(unet, tmp_path):
    binarize_(unet, 'reactnet')
    unet.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match='already has a `quantization_config`'):
        model = UNet2DModel.from_pretrained(tmp_path, quantization_config=BNNConfig(method='bireal'))
    assert model.config.quantization_config.method == 'reactnet'


def test_a_model_made_binary_by_hand_is_not_packed_without_a_config(unet):
    unet.mid_block.resnets[0].conv1 = BinaryConv2d(32, 32, 3, padding=1)
    with pytest.raises(ValueError, match='was made binary by hand'):
        pack_(unet)
    assert isinstance(unet.mid_block.resnets[0].conv1, BinaryConv2d), 'a refused model stays as it is'


def test_dequantize_is_refused(unet):
    binarize_(unet, 'reactnet')
    with pytest.raises(NotImplementedError, match='no float form'):
        unet.dequantize()


# --- the mathematics in a UNet -------------------------------------------------------------------------------

def test_packed_equals_latent_with_zeros_and_in_every_padding(unet):
    for pad_value in (-1, 0, 1):
        model = UNet2DModel(**UNET).eval()
        binarize_(model, BNNConfig(pad_value=pad_value))
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.GroupNorm):
                    module.weight[::2] = 0  # exact zeros reach SiLU and the sign
                    module.bias[::2] = 0
        expected = run(model)
        assert torch.equal(run(pack_(model)), expected)


def test_autocast_does_not_round_sums(unet):
    binarize_(unet, 'bireal')
    conv = next(m for m in unet.modules() if isinstance(m, BinaryConv2d))
    x = torch.randn(1, conv.in_channels, 4, 4)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(conv(x).float(), pack_(nn.Sequential(conv))(x).float())


@pytest.mark.nightly
def test_compile_and_gradient_checkpointing(unet):
    binarize_(unet, 'reactnet')
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    compiled = torch.compile(unet, fullgraph=True)
    torch.testing.assert_close(compiled(x, t).sample, unet(x, t).sample)
    unet.train()
    unet(x, t).sample.square().mean().backward()
    plain = {name: p.grad.clone() for name, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad()
    unet.enable_gradient_checkpointing()
    unet(x, t).sample.square().mean().backward()
    for name, p in unet.named_parameters():
        if name in plain:
            torch.testing.assert_close(p.grad, plain[name], msg=name)


def test_only_what_binary_layers_add_may_be_missing(unet):
    """A float checkpoint has no thresholds; a weight that it lacks is missing all the same."""
    binarize_(unet, 'reactnet')
    name = next(name for name, module in unet.named_modules() if isinstance(module, BinaryLayer))
    new, weight = f'{name}.activation.shift', f'{name}.weight'
    assert {new, weight} <= set(unet.state_dict())
    quantizer = BNNQuantizer(BNNConfig(), pre_quantized=False)
    assert quantizer.update_missing_keys(unet, [weight, new, 'conv_in.bias'], '') == [weight, 'conv_in.bias']
