"""Pipelines of our own classes from a folder."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('diffusers')

from diffusers import DDIMPipeline, DDIMScheduler, DiffusionPipeline
from PIL import Image

import bnn_plugins
from bnn_plugins import BinaryUNet2DModel
from bnn_plugins.apps.diffusion.data import build_dataset
from bnn_plugins.integrations.diffusers.loading import load_pipeline
from bnn_plugins.integrations.diffusers.sr_pipeline import SuperResolutionPipeline


def unet(channels: int) -> BinaryUNet2DModel:
    torch.manual_seed(0)
    return BinaryUNet2DModel(sample_size=8, in_channels=2 * channels, out_channels=channels, layers_per_block=1,
                             block_out_channels=(8, 8), norm_num_groups=4, down_block_types=('BinaryDownBlock2D',) * 2,
                             up_block_types=('BinaryUpBlock2D',) * 2).eval()


def test_super_resolution(tmp_path):
    """Also from a folder that was saved when our classes were in another module."""
    saved = SuperResolutionPipeline(unet(3), DDIMScheduler(), residual=False)
    saved.save_pretrained(tmp_path)
    condition = torch.rand(2, 3, 8, 8) * 2 - 1

    def run(pipe):
        pipe.set_progress_bar_config(disable=True)
        return pipe(condition, 2, torch.Generator().manual_seed(0), output_type='pt').images

    expected = run(saved)
    with pytest.raises(AttributeError, match='SuperResolutionPipeline'):
        DiffusionPipeline.from_pretrained(tmp_path)
    for module in ('bnn_plugins.integrations.diffusers.unet_2d', 'bnn_plugins.hosts.diffusers.unet_2d'):
        index = json.loads((tmp_path / 'model_index.json').read_text())
        (tmp_path / 'model_index.json').write_text(json.dumps(index | dict(unet=[module, 'BinaryUNet2DModel'])))
        loaded = load_pipeline(tmp_path)
        assert type(loaded) is SuperResolutionPipeline
        assert loaded.config.residual is False
        assert torch.equal(run(loaded), expected)


def test_a_pipeline_of_diffusers(tmp_path):
    DDIMPipeline(unet(1), DDIMScheduler()).save_pretrained(tmp_path)
    assert type(bnn_plugins.integrations.diffusers.load_pipeline(str(tmp_path))) is DDIMPipeline


@pytest.mark.parametrize('library', ['os', 'antigravity', 'diffusersx', '../unet'])
def test_modules_that_a_folder_names(library, tmp_path):
    """diffusers imports what a folder names. Mutation: without the check, antigravity opens a browser."""
    DDIMPipeline(unet(1), DDIMScheduler()).save_pretrained(tmp_path)
    index = json.loads((tmp_path / 'model_index.json').read_text())
    (tmp_path / 'model_index.json').write_text(json.dumps(index | {'unet': [library, 'system']}))
    with pytest.raises(ValueError, match=r"model_index\.json takes 'unet' from '.*', which was not imported"):
        load_pipeline(tmp_path)
    assert 'antigravity' not in sys.modules


def test_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'has no model_index.json: give the folder of a saved pipeline'):
        load_pipeline(tmp_path)


@pytest.mark.parametrize('residual', [True, False])
def test_a_residual_is_added_to_the_condition(residual):
    """A UNet that predicts the clean sample at once gives it, or its sum with the condition, from [-1, 1] to [0, 1]."""
    pipe = SuperResolutionPipeline(unet(3), DDIMScheduler(prediction_type='sample'), residual=residual)
    pipe.unet.forward = lambda x, t: SimpleNamespace(sample=torch.full_like(x[:, :3], 0.25))
    pipe.set_progress_bar_config(disable=True)
    condition = torch.rand(2, 3, 4, 5) - 0.5
    images = pipe(condition, num_inference_steps=3, output_type='pt').images
    torch.testing.assert_close(images, (0.25 + residual * condition) / 2 + 0.5, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match=r'condition must be \[N, 3, H, W\]'):
        pipe(condition[:, :2])


def test_small_pictures_are_enlarged_as_those_of_training(tmp_path):
    """Mutation: another resampling, or values that stay in [0, 1]."""
    for size in (4, 16):
        pixels = (torch.rand(size, size, 3) * 255).to(torch.uint8)
        (tmp_path / str(size)).mkdir()
        Image.fromarray(pixels.numpy()).save(tmp_path / f'{size}/a.png')
    data = build_dataset(dict(type='sr_folders', low=str(tmp_path / '4'), high=str(tmp_path / '16')), 16, False)
    pipe = SuperResolutionPipeline(unet(3), DDIMScheduler(prediction_type='sample'), residual=True)
    pipe.set_progress_bar_config(disable=True)
    options = dict(num_inference_steps=1, output_type='pt')
    expected = pipe(data[0]['condition'][None], generator=torch.manual_seed(0), **options).images
    images = pipe(Image.open(tmp_path / '4/a.png'), generator=torch.manual_seed(0), **options).images
    assert images.shape == (1, 3, 16, 16)
    torch.testing.assert_close(images, expected)
