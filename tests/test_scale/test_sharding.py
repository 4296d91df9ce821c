"""Sharded training (FSDP2) through the tools: diffusion models, and mmengine's ``FlexibleRunner``."""

import re

import pytest
import torch

pytest.importorskip('diffusers')
pytest.importorskip('accelerate')

from safetensors.torch import load_file

from bnn_plugins.apps.diffusion import train as diffusion
from tests.processes import together
from tests.test_scale import test_diffusion, test_mmengine
from tests.test_scale.programs import train_flexible
from tests.test_scale.test_diffusion import assert_equal


def test_a_sharded_diffusion_model_trains_saves_and_resumes_whole(tmp_path):
    """As DDP does, to rounding; from a sharded checkpoint one process goes on. Mutation: a checkpoint of the first shards."""
    flags = ['--train_batch_size', 6, '--max_train_steps', 3, '--checkpointing_steps', 2]
    whole = test_diffusion.trained(2, tmp_path / 'whole', *flags)
    sharded = test_diffusion.trained(2, tmp_path / 'sharded', *flags, '--shard')
    for part in ('weights', 'ema', 'optimizer'):
        assert_equal(sharded[0][part], sharded[1][part])
        assert_equal(sharded[0][part], whole[0][part], 1e-4)
    saved = [load_file(tmp_path / name / 'run/unet/diffusion_pytorch_model.safetensors') for name in ('whole', 'sharded')]
    assert_equal(*saved, 1e-4)
    alone = test_diffusion.trained(1, tmp_path / 'sharded', *flags, '--train_batch_size', 12, '--overwrite_output_dir',
                                   '--resume_from_checkpoint', 'checkpoint-2')
    assert_equal(alone[0]['weights'], whole[0]['weights'], 1e-4)


def test_the_flexible_runner_shards(tmp_path):
    (tmp_path / 'config.py').write_text(test_mmengine.CONFIG + "runner_type = 'FlexibleRunner'\n"
                                        "strategy = dict(type='bnn_plugins.FullyShardStrategy')\n"
                                        'train_cfg = dict(max_epochs=1)\n')
    together(2, train_flexible, tmp_path / 'config.py', tmp_path, folder=tmp_path)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2)]
    saved = torch.load(tmp_path / 'run/epoch_1.pth', weights_only=False)
    floats = [name for name, value in ranks[0].items() if value.is_floating_point() and 'running' not in name]
    for name in floats:
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.equal(ranks[0][name], saved['state_dict'][name])
    assert all(type(value) is torch.Tensor for state in saved['optimizer']['state'].values() for value in state.values())


@pytest.mark.parametrize(('variable', 'sharded'), [('ACCELERATE_USE_FSDP', True), ('ACCELERATE_USE_DEEPSPEED', None)])
def test_what_accelerate_launch_asks_for(variable, sharded, monkeypatch):
    monkeypatch.setenv(variable, 'true')
    if sharded:
        assert diffusion.sharding_asked()
        assert not diffusion.sharding_asked(), "accelerate's plugin is not built"
    else:
        with pytest.raises(ValueError, match=re.escape('use accelerate launch --use_fsdp, or --shard')):
            diffusion.sharding_asked()
