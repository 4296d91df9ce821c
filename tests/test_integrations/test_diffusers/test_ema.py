"""The moving average of a binary UNet."""

import pytest
import torch

pytest.importorskip('diffusers')

from bnn_plugins import BinaryUNet2DModel
from bnn_plugins.integrations.diffusers.ema import BNNEMAModel


def test_average_survives_save_and_load(tmp_path):
    torch.manual_seed(0)
    unet = BinaryUNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8),
                             norm_num_groups=4, down_block_types=('BinaryDownBlock2D',) * 2,
                             up_block_types=('BinaryUpBlock2D',) * 2)
    ema = BNNEMAModel(unet.parameters(), decay=0.5, model_cls=BinaryUNet2DModel, model_config=unet.config)
    for p in unet.parameters():
        p.data += 1
    ema.step(unet.parameters())
    ema.save_pretrained(tmp_path)
    loaded = BNNEMAModel.from_pretrained(tmp_path, BinaryUNet2DModel)
    assert loaded.optimization_step == 1
    for first, second in zip(ema.shadow_params, loaded.shadow_params, strict=True):
        assert torch.equal(first, second)
    ema.shadow_params.pop()
    with pytest.raises(ValueError, match='the average has'):
        ema.save_pretrained(tmp_path)
