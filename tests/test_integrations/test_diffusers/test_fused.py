"""Fused models of diffusers: pipelines run, outputs are what they were, other options than the traced ones run, too."""

import pytest
import torch
from torch import randn, tensor

from bnn_plugins import binarize_, fuse_, pack_, unfuse_

pytest.importorskip('diffusers')

import diffusers
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from test_deploy.test_fuse_faults import parts


@pytest.fixture(scope='module')
def packed():
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=16, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 32),
                       norm_num_groups=8, down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                       up_block_types=('AttnUpBlock2D', 'UpBlock2D')).eval()
    binarize_(unet, 'bireal')
    return pack_(unet)


def test_a_pipeline_runs(packed):
    fuse_(packed)
    pipeline = DDPMPipeline(packed, DDPMScheduler(num_train_timesteps=10))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=2, output_type='np', generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (2, 16, 16, 3)


UNET = dict(sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=16,
            attention_head_dim=8)
VAE = dict(block_out_channels=(16, 32), down_block_types=('DownEncoderBlock2D',) * 2,
           up_block_types=('UpDecoderBlock2D',) * 2, norm_num_groups=8)
# Inputs are drawn when this file is read, whatever was drawn before: a sign may turn within rounding.
torch.manual_seed(0)
MODELS = {
    'UNet2DConditionModel': (dict(
        UNET, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'), up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D')), [
        ((randn(2, 4, 8, 8), 3, randn(2, 5, 16)), {}), ((randn(2, 4, 8, 8), tensor([3, 4]), randn(2, 5, 16)), {}),
        ((randn(2, 4, 8, 8), tensor(3)), dict(encoder_hidden_states=randn(2, 5, 16), return_dict=False))]),
    'AutoencoderKL': (VAE, [((randn(1, 3, 16, 16),), {})]),
    'VQModel': (VAE, [((randn(1, 3, 16, 16),), {})]),
    'DiTTransformer2DModel': (dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=1, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10), [((randn(2, 4, 8, 8), tensor([1, 2]), tensor([1, 2])), {})]),
    'CogVideoXTransformer3DModel': (dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=16,
        num_layers=1, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=8), [
        ((randn(1, frames, 4, 8, 8), randn(1, 8, 16), tensor([3])), {}) for frames in (1, 3)]),
    'PriorTransformer': (dict(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, embedding_dim=16, num_embeddings=5,
        additional_embeddings=4), [((randn(2, 16), tensor([1, 2]), randn(2, 16), randn(2, 5, 16)), {})]),
}


@pytest.mark.filterwarnings('ignore:fused')
@pytest.mark.parametrize('name', MODELS)
def test_outputs_are_what_they_were(name):
    """Types, axes, strides, and values within rounding."""
    config, calls = MODELS[name]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**config).eval()
    binarize_(model, 'bireal')
    pack_(model)
    with torch.no_grad():
        expected = [parts(model(*args, **more)) for args, more in calls]
        report = fuse_(model)
        assert len(report.fused) == len(report.rows)
        for (args, more), before in zip(calls, expected, strict=True):
            for one, other in zip(parts(model(*args, **more)), before, strict=True):
                if isinstance(other, torch.Tensor):
                    assert (one.shape, one.stride()) == (other.shape, other.stride())
                    assert (one - other).abs().max() <= 1e-4 * other.abs().max()
                else:
                    assert one == other


@pytest.mark.parametrize('time', [5, tensor(5), tensor([5]), tensor([5, 7])], ids=str)
def test_timesteps_of_any_kind(packed, time):
    x = randn(2, 3, 16, 16)
    with torch.no_grad():
        fused = (fuse_(packed), packed(x, time))[1]
        expected = (unfuse_(packed), packed(x, time))[1]
    assert type(fused) is type(expected)
    assert (fused.sample - expected.sample).abs().max() <= 1e-4 * expected.sample.abs().max()
