"""Which layers of diffusers' classes stay real by structure, against two forward passes: what does not change with the latents
is computed from the timestep and the conditions alone."""

import diffusers
import pytest
import torch
from torch import nn

from bnn_plugins import BNNConfig, binarize_, pack_
from bnn_plugins.layers import BinaryLayer

LATENTS, TEXT, POOLED = torch.randn(2, 4, 8, 8), torch.randn(2, 7, 32), torch.randn(2, 16)
IDS = torch.zeros(16, 3), torch.zeros(7, 3)


def flux():
    model = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True)
    return model, lambda x, t: model(x.flatten(2).mT[:, :16], TEXT, POOLED, t / 1000, *IDS, t), 8


def cogvideox():
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, time_embed_dim=2, text_embed_dim=32,
        num_layers=2, sample_width=8, sample_height=8, sample_frames=5, patch_size=2, max_text_seq_length=7)
    return model, lambda x, t: model(x[:, None].repeat(1, 2, 1, 1, 1), TEXT, t), 7


def cogview4():
    model = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=4, num_layers=2, attention_head_dim=4, num_attention_heads=4, out_channels=4,
        text_embed_dim=32, time_embed_dim=8, condition_dim=4)
    size = torch.tensor([[64., 64.]] * 2)
    return model, lambda x, t: model(x, torch.cat([TEXT, TEXT, TEXT], 1)[:, :16], t, size, size, size * 0), 5


def wan():
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
        freq_dim=256, ffn_dim=32, num_layers=2, rope_max_seq_len=32)
    return model, lambda x, t: model(x[:, :, None].repeat(1, 1, 3, 1, 1), t, TEXT), 3


def z_image():
    model = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=16, n_layers=1, n_refiner_layers=1, n_heads=1,
        n_kv_heads=2, cap_feat_dim=32, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32])
    return model, lambda x, t: model(list(x[:, :, None]), t / 1000, list(TEXT)), 5


def inputs_of(model, call, *arguments):
    """``{layer: input}`` of one forward pass."""
    seen, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            hook = lambda _, given, name=name: seen.setdefault(name, given[0].clone())  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        call(*arguments)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize('build', [flux, cogvideox, cogview4, wan, z_image], ids=lambda build: build.__name__)
def test_what_is_computed_from_the_timestep_alone_stays_real(build):
    """Mutation: without ``vector`` and ``sources`` in ``traced_role`` names are all there is, and all five classes fail."""
    torch.manual_seed(0)
    model, call, least = build()
    model.eval()
    t = torch.tensor([400., 400.])
    first, other, later = (inputs_of(model, call, *given) for given in ((LATENTS, t), (LATENTS + 1, t), (LATENTS, t * 2)))
    steady = {name for name, x in first.items() if torch.equal(x, other[name]) and not torch.equal(x, later[name])
              and x.numel() <= 2 * x.shape[-1]}
    assert len(steady) >= least, steady
    report = binarize_(model, 'reactnet')
    assert report.traced == 'a forward pass decided, then names and classes'
    binary = {row.name for row in report.binary}
    assert not steady & binary
    assert {name for name in first if name.split('.')[-1] in ('to_q', 'to_k')} <= binary, 'attention is no modulation'


@pytest.mark.parametrize('build', [flux, cogvideox, cogview4, wan, z_image], ids=lambda build: build.__name__)
def test_small_timesteps_train(build):
    """What is computed from timesteps near zero has one sign, which a binary layer would refuse. Mutation: ``traced_role``
    without what is computed from a timestep alone."""
    torch.manual_seed(0)
    model, call, _ = build()
    binarize_(model, 'bireal')
    out = call(LATENTS, torch.tensor([0.0, 1e-3]))
    out = out.sample if hasattr(out, 'sample') else out[0]
    loss = sum(x.square().mean() for x in (out if isinstance(out, list) else [out]))
    loss.backward()
    assert loss.isfinite()
    assert any(module.weight.grad.any() for module in model.modules() if isinstance(module, BinaryLayer)
               if module.weight.grad is not None)


def test_a_small_model_that_needs_numbers():
    """Mochi asks for autocast, which the meta device does not have. Mutation: ``not_on_meta`` always False."""
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16, in_channels=4,
        text_embed_dim=16, time_embed_dim=4, max_sequence_length=16)
    assert binarize_(model, 'xnor').traced == 'a forward pass decided, then names and classes'


def test_layers_read_without_a_call():
    """HunyuanDiT's pooler hands the weights of its layers to a function: as binary ones they would never run."""
    model = diffusers.HunyuanDiT2DModel(sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8,
                                        num_attention_heads=3, cross_attention_dim=8, cross_attention_dim_t5=8,
                                        pooled_projection_dim=4, hidden_size=24, text_len=4, text_len_t5=4)
    reasons = {row.name: row.reason for row in binarize_(model, 'xnor').rows}
    assert {reasons[f'time_extra_emb.pooler.{k}_proj'] for k in 'qkvc'} == {
        'HunyuanDiTAttentionPool uses its weight without calling it'}


def tiny():
    return diffusers.AutoencoderTiny(encoder_block_out_channels=(32, 32), decoder_block_out_channels=(32, 32),
                                     num_encoder_blocks=(1, 2), num_decoder_blocks=(2, 1))


@pytest.mark.parametrize('options', [{}, dict(device_map='cpu'), dict(device_map={'': 'cpu'})], ids=str)
def test_replaced_relus_of_a_float_checkpoint(options, tmp_path):
    """Their slopes are not in it; without values they stayed on the meta device."""
    model, x = tiny(), torch.randn(1, 3, 16, 16)
    model.save_pretrained(tmp_path / 'float')
    latent = diffusers.AutoencoderTiny.from_pretrained(tmp_path / 'float', quantization_config=BNNConfig(), **options)
    twin = tiny()
    twin.load_state_dict(model.state_dict())
    report = binarize_(twin, BNNConfig())
    assert len(report.replaced) > 4
    assert torch.equal(latent.eval()(x).sample, twin.eval()(x).sample)
    assert latent.hf_quantizer.report.summary() == report.summary()
    for name, made in (('latent', latent), ('packed', pack_(twin))):
        made.save_pretrained(tmp_path / name)
        again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / name).eval()
        assert torch.equal(again(x).sample, latent(x).sample)


def test_a_relu_with_two_names_becomes_two(tmp_path):
    """Two names of one parameter are what safetensors refuses."""
    act = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(8, 8, 1), act, nn.Conv2d(8, 8, 1), act, nn.Conv2d(8, 8, 1))
    report = binarize_(model, BNNConfig())
    assert model[1] is not model[3]
    assert report.replaced.keys() == {'1', '3'}
    assert sum(isinstance(module, BinaryLayer) for module in model) == 3
