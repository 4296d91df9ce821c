"""UNet blocks with binary LSTMs."""

import pytest
import torch

from bnn_plugins import pack_, verify
from bnn_plugins.layers import BinaryLayer, BinaryLSTMCell, BinaryScan2d

pytest.importorskip('diffusers')

from bnn_plugins.integrations.diffusers.blocks import BlockOptions
from bnn_plugins.integrations.diffusers.scan_blocks import BinaryScanUnit2D
from bnn_plugins.integrations.diffusers.unet_2d import BinaryUNet2DModel

SIZES = dict(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8)
BLOCKS = dict(down_block_types=('BinaryDownBlock2D', 'BinaryScanDownBlock2D'), mid_block_type='BinaryScanMidBlock2D',
              up_block_types=('BinaryScanUpBlock2D', 'BinaryUpBlock2D'))


@pytest.mark.parametrize('changes', [{}, dict(time_buckets=5, add_attention=False), dict(expand=dict(tau=2), method='xnor')],
                         ids=str)
def test_train_save_load_pack(changes, tmp_path):
    torch.manual_seed(0)
    model, x, t = BinaryUNet2DModel(**SIZES, **BLOCKS, **changes), torch.randn(2, 1, 8, 8), torch.tensor([3, 400])
    scans = [name.split('.')[0] for name, module in model.named_modules() if isinstance(module, BinaryScan2d)]
    assert set(scans) == {'down_blocks', 'mid_block', 'up_blocks'} - ({'mid_block'} if 'add_attention' in changes else set())
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
        assert torch.equal(loaded(x, t).sample, expected)
        assert verify(model, loaded, x, t).ok
        loaded.save_pretrained(tmp_path / 'packed')
        again = BinaryUNet2DModel.from_pretrained(tmp_path / 'packed')
        assert not any(isinstance(m, BinaryLayer | BinaryLSTMCell) for m in again.modules())
        assert torch.equal(again(x, t).sample, expected)


def test_the_stream_goes_around_the_non_linearity():
    unit = BinaryScanUnit2D(8, BlockOptions('reactnet', 0, None, temb_channels=12, buckets=0, groups=4, eps=1e-5)).eval()
    unit.act.slope.data.zero_()
    unit.act.gamma.data.fill_(1e6)
    x = torch.randn(1, 8, 3, 4)
    assert torch.equal(unit(x), x)
