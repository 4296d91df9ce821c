"""The tools on a classifier: train, resume, EMA, bfloat16, two processes, two steps, test, pack, summary."""

import csv
import re

import pytest
import torch

from bnn_plugins.integrations.mmengine.pack import pack_checkpoint
from bnn_plugins.integrations.mmengine.run import build_runner, load_config, train
from bnn_plugins.integrations.mmengine.run import test as evaluate
from bnn_plugins.layers import BinaryLayer

from ..conftest import REPOSITORY, as_arguments, tool

CONFIG = 'configs/classification/resnet8_reactnet_digits.py'
SHORT = {'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 1, 'train_dataloader.dataset.size': 300,
         'model.backbone.base_channels': 4, 'default_hooks.checkpoint.interval': 1, 'default_hooks.logger.interval': 1}


def digest(path) -> dict:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    work = tmp_path_factory.mktemp('trained')
    train(CONFIG, str(work), cfg_options=SHORT)
    return work


def test_packed_bits_predict_what_the_latents_predict(trained, tmp_path):
    checkpoint = str(trained / 'epoch_2.pth')
    file = pack_checkpoint(CONFIG, checkpoint, str(tmp_path / 'packed.safetensors'), SHORT)
    latent, packed = (evaluate(CONFIG, path, str(tmp_path / name), out=str(tmp_path / f'{name}.pkl'), cfg_options=SHORT,
                               fuse=False)  # fused, folded norms round elsewhere
                      for name, path in (('latent', checkpoint), ('packed', str(file))))
    assert set(latent) == {'top1', 'top5', 'loss'}
    assert latent == packed
    assert (tmp_path / 'packed.pkl').stat().st_size > 1000
    with pytest.raises(ValueError, match='they are for detectors'):
        evaluate(CONFIG, checkpoint, str(tmp_path), show_dir=str(tmp_path), cfg_options=SHORT)


def test_resume_repeats_the_uninterrupted_run(trained, tmp_path):
    train(CONFIG, str(tmp_path), cfg_options={**SHORT, 'train_cfg.max_epochs': 1, 'param_scheduler': []})
    whole = train(CONFIG, str(tmp_path / 'whole'), cfg_options={**SHORT, 'param_scheduler': []})
    train(CONFIG, str(tmp_path), resume='auto', cfg_options={**SHORT, 'param_scheduler': []})
    assert whole.epoch == 2
    one, other = digest(tmp_path / 'epoch_2.pth'), digest(tmp_path / 'whole/epoch_2.pth')
    # ReActNet has no schedule of its own, so the length of the first stretch does not show.
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_two_runs_in_one_second_are_two_experiments(tmp_path, monkeypatch):
    monkeypatch.setattr('mmengine.runner.runner.time.time', lambda: 1.8e9)
    one, other = (build_runner(load_config(CONFIG, str(tmp_path), SHORT)) for _ in range(2))
    one.message_hub.update_info('best_score', 99.0)
    assert one.timestamp == other.timestamp
    assert 'best_score' not in other.message_hub.runtime_info


def test_ema_and_bfloat16_from_the_shell(tmp_path):
    config = tmp_path / 'ema.py'
    config.write_text(f"_base_ = '{REPOSITORY / CONFIG}'\ncustom_hooks = [dict(type='bnn_plugins.BinaryTrainingHook'), "
                      "dict(type='EMAHook', momentum=0.1)]\n")
    done = tool('tools/train.py', config, '--amp', '--work-dir', tmp_path, '--cfg-options', *as_arguments(SHORT))
    assert done.returncode == 0, done.stderr[-2000:]
    content = torch.load(tmp_path / 'epoch_2.pth', map_location='cpu', weights_only=False)
    average = {name.removeprefix('module.'): value for name, value in content['ema_state_dict'].items()}
    moved = [name for name, value in content['state_dict'].items() if value.is_floating_point()
             and not torch.equal(value, average[name])]
    assert any(name.endswith('conv.weight') for name in moved)
    assert all(value.isfinite().all() for value in average.values())


@pytest.mark.nightly
def test_two_processes_count_every_image_once(tmp_path):
    """A set that does not divide: one image is dealt twice and must not count."""
    options = {**SHORT, 'train_cfg.max_epochs': 1, 'val_dataloader.dataset.held_out': 237, 'val_dataloader.batch_size': 50}
    launcher = ('-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
    done = tool('tools/train.py', CONFIG, '--launcher', 'pytorch', '--work-dir', tmp_path / 'two', '--cfg-options',
                *as_arguments(options), launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = re.findall(r'Epoch\(val\) \[1\]\[3/3\]\s+top1: ([\d.]+)', done.stdout + done.stderr)
    alone = evaluate(CONFIG, str(tmp_path / 'two/epoch_1.pth'), str(tmp_path / 'alone'), cfg_options={
        **options, 'test_dataloader.dataset.test': False, 'test_dataloader.dataset.part': 'val',
        'test_dataloader.dataset.held_out': 237})
    assert float(shown[0]) == pytest.approx(alone['top1'], abs=1e-3)


@pytest.mark.parametrize('stop', [None, 1, 2])
def test_two_steps(stop, tmp_path, monkeypatch):
    """Real weights, then binary ones from where these ended; a resume goes on in the step that was interrupted."""
    config = tmp_path / 'steps.py'
    config.write_text(f"""_base_ = '{REPOSITORY / CONFIG}'
model = dict(backbone=dict(method=dict(_delete_=True, type='reactnet')))
param_scheduler = []
steps = [dict(model=dict(backbone=dict(method=dict(binarize_weights=False)))),
         dict(optim_wrapper=dict(optimizer=dict(lr=1e-4)))]
""")
    work = tmp_path / 'work'
    if stop is not None:  # as after a kill: only the first epoch of this step is there
        train(str(config), str(work), cfg_options=SHORT)
        for number in range(stop, 3):
            for path in (work / f'step{number}').glob('*' if number > stop else 'best*'):
                if path.is_file():
                    path.unlink()
        (work / f'step{stop}/epoch_2.pth').unlink()
        (work / f'step{stop}/last_checkpoint').write_text(str(work / f'step{stop}/epoch_1.pth'))
    runner = train(str(config), str(work), resume=None if stop is None else 'auto', cfg_options=SHORT)
    assert runner.epoch == 2
    first, last = digest(work / 'step1/epoch_2.pth'), digest(work / 'step2/epoch_2.pth')
    layers = [m for m in runner.model.modules() if isinstance(m, BinaryLayer)]
    assert all(set(m.weight_binarizer(m.weight)[0].unique().tolist()) == {-1.0, 1.0} for m in layers)
    name = 'backbone.stages.0.0.unit1.conv.weight'
    step = (last[name] - first[name]).abs().max().item()
    assert 0 < step < 20 * 1e-4, 'it started from the latents of the first step, and moved a little'
    with pytest.raises(ValueError, match='resumes by itself'):
        train(str(config), str(work), resume='epoch_1.pth', cfg_options=SHORT)


def test_summary_from_the_shell(tmp_path):
    done = tool('tools/summary.py', CONFIG, '--csv', tmp_path / 'summary.csv', '--signs')
    assert done.returncode == 0, done.stderr[-2000:]
    with (tmp_path / 'summary.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert rows[0]['output'] == '16x16x16', 'image_size of the config'
    assert rows[-1]['flops'] == str(9 * 16 * 256 + 640)
