"""Packed models whose tensors are elsewhere until they are needed: the same numbers."""

import accelerate
import diffusers
import pytest
import torch

from bnn_plugins import binarize_, pack_

X = torch.randn(1, 3, 16, 16)


@pytest.fixture
def packed():
    model = diffusers.UNet2DModel(sample_size=16, block_out_channels=(32, 64), norm_num_groups=8,
                                  down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
                                  up_block_types=('AttnUpBlock2D', 'UpBlock2D'))
    binarize_(model, 'reactnet')  # with learned thresholds, which are in a part of the layer
    return pack_(model.eval())


@pytest.mark.parametrize('offload', [accelerate.cpu_offload, accelerate.disk_offload], ids=lambda f: f.__name__)
def test_accelerate(offload, packed, tmp_path):
    expected = packed(X, 3).sample
    folder = [tmp_path] if offload is accelerate.disk_offload else []
    offload(packed, *folder, execution_device=torch.device('cpu'))
    assert all(parameter.is_meta for parameter in packed.parameters())
    for _ in range(2):
        assert torch.equal(packed(X, 3).sample, expected)


@pytest.mark.parametrize('kind', ['leaf_level', 'block_level'])
@pytest.mark.parametrize('to_disk', [False, True])
def test_groups_of_diffusers(kind, to_disk, packed, tmp_path):
    """Mutation: without the row of ``diffusers.hooks.group_offloading`` leaves on disk lose their thresholds in silence."""
    expected, device = packed(X, 3).sample, torch.device('cpu')
    packed.enable_group_offload(onload_device=device, offload_device=device, offload_type=kind,
                                num_blocks_per_group=1 if kind == 'block_level' else None,
                                offload_to_disk_path=str(tmp_path) if to_disk else None)
    for _ in range(2):
        assert torch.equal(packed(X, 3).sample, expected)


@pytest.mark.parametrize('cast', ['bfloat16', 'half', 'double'])
def test_a_packed_model_refuses_a_change_of_dtype(cast, packed):
    with pytest.raises(ValueError, match=r'packed model keeps the dtype|not supported for quantized'):
        getattr(packed, cast)()
