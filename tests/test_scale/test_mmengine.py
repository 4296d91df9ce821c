"""``tools/train.py`` on 1, 2 and 3 processes: a classifier of digits, since a detector takes longer to say the same."""

import math
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import convert_sync_batchnorm
from mmengine.registry import init_default_scope

from bnn_plugins import pack_
from bnn_plugins.engine.processes import check_restart
from bnn_plugins.integrations.mmengine import run
from bnn_plugins.integrations.mmengine.launch import distribute_, join_processes
from bnn_plugins.integrations.mmengine.pack import pack_checkpoint
from tests.processes import REPOSITORY, Group, together
from tests.test_scale.programs import decide_nothing, evaluate, share_a_file, train
from tests.test_scale.test_diffusion import assert_equal

CONFIG = f"""
_base_ = '{REPOSITORY}/configs/classification/resnet8_reactnet_digits.py'
model = dict(backbone=dict(base_channels=4))
train_dataloader = dict(batch_size=10, dataset=dict(size=120))
val_dataloader = dict(dataset=dict(size=30))
train_cfg = dict(max_epochs=4, val_interval=10)
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, T_max=4, end=4, convert_to_iter_based=True)]
optim_wrapper = dict(optimizer=dict(lr=0.001))
default_hooks = dict(checkpoint=dict(interval=1, save_best=None), logger=dict(interval=1))
"""


def trained(processes: int, folder: Path, *flags, stop: int | None = None, machines: bool = False, config: str = '') -> list:
    folder.mkdir(exist_ok=True)
    (folder / 'config.py').write_text(CONFIG + config)
    work = 'run' if machines else folder / 'run'
    together(processes, train, [folder / 'config.py', '--work-dir', work, *flags], folder, stop, machines, folder=folder)
    return [torch.load(folder / f'rank{rank}.pth', weights_only=False) for rank in range(processes)]


def images(*parts: list[dict]) -> list:
    return sorted(image for ranks in parts for rank in ranks for image in rank['seen'])


def test_resume_on_one_on_three_and_on_two_processes(tmp_path):
    """An epoch each: the share of the training that is over stays, and with it the learning rate; each epoch has all images.
    Mutation: without ResumeHook three processes would be beyond the end, and one would start over."""
    parts = []
    for epoch, count in enumerate((2, 1, 3, 2), start=1):
        length = 12 // count
        stop = None if epoch == 4 else epoch * length + 1  # one iteration into the next epoch, which is not saved
        parts.append(trained(count, tmp_path, *(['--resume'] if parts else []), stop=stop))
        for rank in parts[-1]:
            for key in ('weights', 'optimizer', 'iter'):
                one, other = ({name: value for name, value in r[key].items() if epoch == 4 or 'running' not in name}
                              if key == 'weights' else r[key] for r in (rank, parts[-1][0]))
                assert_equal(one, other)
        progress = (stop or 4 * length) / (4 * length)
        assert parts[-1][0]['rates'][0] == pytest.approx(0.0005 * (1 + math.cos(math.pi * progress)), rel=1e-4, abs=1e-5)
    assert parts[-1][0]['iter'] == 24
    whole = [sum_ for epoch, sum_ in images(parts[0]) if epoch == 0]
    for epoch, part in enumerate(parts):
        assert [sum_ for e, sum_ in images(part) if e == epoch] == whole
    assert parts[0][0]['seed'] != parts[0][1]['seed'], 'each process augments in its own way'


def test_an_interrupted_epoch_goes_on_where_it_was(tmp_path):
    """Saved after 2 of 6 iterations of two processes; one process takes the other 80 images. Mutation: without Skipping."""
    config = "default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=2))\n"
    first = trained(2, tmp_path, '--cfg-options', 'train_cfg.max_epochs=1', stop=2, config=config)
    then = trained(1, tmp_path, '--cfg-options', 'train_cfg.max_epochs=1', '--resume', config=config)
    assert then[0]['iter'] == 12
    assert len(then[0]['seen']) == 80
    assert images(first, then) == images(trained(1, tmp_path / 'whole', '--cfg-options', 'train_cfg.max_epochs=1'))


def test_steps_and_resume_on_machines_without_a_common_disk(tmp_path):
    """Each step starts from the checkpoint of the one before, in all processes; so does a resume. The second process finds no
    checkpoint by itself. Mutations: each process looks for itself; results are collected in a folder."""
    config = ('train_cfg = dict(max_epochs=1, val_interval=1)\n'
              'steps = [dict(), dict(optim_wrapper=dict(optimizer=dict(lr=1e-9)))]\n')
    ranks = trained(2, tmp_path, machines=True, config=config)
    assert_equal(ranks[0]['weights'], ranks[1]['weights'])
    before = torch.load(tmp_path / 'machine0/run/step1/epoch_1.pth', weights_only=False)['state_dict']
    assert_equal({name: ranks[1]['weights'][name] for name in before if 'conv.weight' in name},
                 {name: value for name, value in before.items() if 'conv.weight' in name}, 1e-6)
    again = trained(2, tmp_path, '--resume', machines=True, config=config.replace('max_epochs=1', 'max_epochs=2'))
    assert_equal(again[0]['weights'], again[1]['weights'])
    assert again[1]['epoch'] == 2
    assert (tmp_path / 'machine0/run/step2/epoch_2.pth').is_file()


def test_a_file_of_the_first_machine_is_sent_to_the_others(tmp_path):
    """Also where the other has another file of that name and size. Mutation: sizes alone are compared."""
    together(2, share_a_file, tmp_path, folder=tmp_path)
    for name in ('whole.pth', 'changed.pth'):
        assert torch.equal(torch.load(tmp_path / 'machine1/run' / name), torch.arange(10.))
    assert {path.name for path in (tmp_path / 'machine1/run').iterdir()} == {'whole.pth', 'changed.pth'}


@pytest.mark.parametrize(('launcher', 'message'), [('slurm', 'SLURM_PROCID is not set: start the tool with srun'),
                                                   ('mpi', 'OMPI_COMM_WORLD_RANK is not set'), ('pytorch', 'torchrun')])
def test_a_launcher_that_did_not_start_the_tool(launcher, message, monkeypatch, tmp_path):
    from bnn_plugins.integrations.mmengine.run import load_config
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / 'config.py').write_text(CONFIG)
    with pytest.raises(ValueError, match=message):
        join_processes(load_config(str(tmp_path / 'config.py'), launcher=launcher))


def test_a_restart_that_would_hang_is_refused(monkeypatch):
    """torchrun's shared store has the addresses of the processes before. Mutation: the count is not looked at."""
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    for count in ('0', '1'):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', count)
        if count == '0':
            check_restart()
    with pytest.raises(RuntimeError, match='set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it'):
        check_restart()


def test_what_the_first_process_cannot_decide_fails_in_all(tmp_path):
    group = Group(2, decide_nothing, folder=tmp_path)
    assert group.wait(60) == [1, 1]
    assert group.output().count("KeyError: 'nothing'") == 2


def test_accumulated_batches_count_for_the_learning_rate(monkeypatch, tmp_path):
    """Twice the parts, twice the images of a step. Mutation: mmengine's own count."""
    (tmp_path / 'config.py').write_text(CONFIG + 'auto_scale_lr = dict(base_batch_size=40)\n')
    seen = []

    def build(cfg):
        seen.append(cfg.auto_scale_lr)
        raise StopIteration
    monkeypatch.setattr(run, 'build_runner', build)
    with pytest.raises(StopIteration):
        run.train(str(tmp_path / 'config.py'), auto_scale_lr=True, cfg_options={'optim_wrapper.accumulative_counts': 4})
    assert seen == [dict(base_batch_size=10, enable=True)]


def test_evaluation_on_two_processes_is_that_of_one(tmp_path):
    """Of a packed file, and with predictions written out once."""
    trained(1, tmp_path, '--cfg-options', 'train_cfg.max_epochs=1')
    packed = pack_checkpoint(*(str(tmp_path / name) for name in ('config.py', 'run/epoch_1.pth', 'packed.safetensors')))
    counts = []
    for count in (1, 2):
        together(count, evaluate, tmp_path / 'config.py', packed, tmp_path, count, folder=tmp_path)
        counts.append(torch.load(tmp_path / f'metrics{count}.pth'))
    assert counts[0] == pytest.approx(counts[1])


def test_detectors_on_several_gpus_have_norms_of_all_images(monkeypatch, tmp_path):
    """And a detector with such norms packs. Without a GPU torch has none of them, so that mmengine is not asked."""
    config = Config.fromfile(f'{REPOSITORY}/configs/detection/retinanet_bnn-r18_fpn_digits.py')
    config.launcher = 'pytorch'
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 1)
    monkeypatch.setattr(torch.distributed, 'all_gather_object', lambda found, own: found.__setitem__(0, own))
    for gpus in (True, False):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda gpus=gpus: gpus)
        distribute_(config)
        assert config.sync_bn == ('torch' if gpus else None)
    init_default_scope('mmdet')
    backbone = MODELS.build(config.model.backbone).eval()
    x = torch.randn(1, 3, 64, 64)
    expected = backbone(x)
    synchronised = convert_sync_batchnorm(backbone, 'torch').eval()
    assert sum(isinstance(module, torch.nn.SyncBatchNorm) for module in synchronised.modules()) > 16
    for packed, latent in zip(pack_(synchronised)(x), expected, strict=True):
        torch.testing.assert_close(packed, latent, rtol=1e-5, atol=1e-5)
