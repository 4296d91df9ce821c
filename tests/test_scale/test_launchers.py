"""The tools as launchers start them: torchrun, which starts killed processes again, and accelerate."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.processes import REPOSITORY, free_port
from tests.test_scale import test_diffusion, test_mmengine
from tests.test_scale.test_diffusion import assert_equal

pytestmark = pytest.mark.scale


def start(command: list, log: Path, **environment) -> subprocess.Popen:
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'  # where torchrun is
    with log.open('w') as file:
        return subprocess.Popen([*map(str, command)], stdout=file, stderr=subprocess.STDOUT, cwd=REPOSITORY,
                                env=os.environ | dict(OMP_NUM_THREADS='1', PATH=path) | environment)


def agents(count: int, script: str, config: Path, *flags, folder: Path) -> list[subprocess.Popen]:
    """A script of ours with two processes here, or with one each on two machines (both are this one) that find each other."""
    shared = dict(NNODES=str(count), PORT=str(free_port()), RESTARTS='3')
    return [start([REPOSITORY / 'tools' / script, config, 2 // count, *flags], folder / f'agent{index}.txt', **shared)
            for index in range(count)]


def kill_one(agent: subprocess.Popen, saved: Path) -> None:
    """SIGKILL for a process of this agent, once this checkpoint is there."""
    until = time.monotonic() + 600
    while not saved.exists():
        assert agent.poll() is None, 'it ended before the checkpoint'
        assert time.monotonic() < until
        time.sleep(0.02)
    started = psutil.Process(agent.pid).children(recursive=True)
    workers = [child for child in started if any('tools/train' in word for word in child.cmdline()[2:3])]  # python -u TOOL
    workers[-1].kill()


def end(processes: list[subprocess.Popen], folder: Path) -> str:
    """What they printed; all have to succeed."""
    try:
        codes = [process.wait(1200) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
    printed = '\n'.join(path.read_text() for path in sorted(folder.glob('*.txt')))
    assert codes == [0] * len(codes), printed[-8000:]
    return printed


@pytest.mark.parametrize('count', [1, 2])
def test_a_killed_process_of_a_diffusion_training_is_started_again(count, tmp_path):
    """By one agent, and by two: the pictures' network is that of a training that was left alone. Mutation: the
    script without its variable, with which new processes wait for those that are gone."""
    flags = ['--train_batch_size', 6, '--max_train_steps', 40, '--checkpointing_steps', 4]
    whole = test_diffusion.trained(2, tmp_path / 'whole', *flags)
    run = tmp_path / 'run'
    running = agents(count, 'dist_train_diffusion.sh', tmp_path / 'whole/config.py', '--output_dir', run,
                     *test_diffusion.FLAGS, *flags, '--resume_from_checkpoint', 'latest', folder=tmp_path)
    kill_one(running[-1], run / 'checkpoint-4')
    assert 'exitcode: -9' in end(running, tmp_path)
    saved = [load_file(folder / 'unet/diffusion_pytorch_model.safetensors') for folder in (tmp_path / 'whole/run', run)]
    assert_equal(*saved)
    assert whole[0]['step'] == 40


@pytest.mark.parametrize('count', [1, 2])
def test_a_killed_process_of_mmengine_is_started_again(count, tmp_path):
    """Running statistics of norms apart: inside an epoch they are those of one process."""
    config = "default_hooks = dict(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False, interval=3))\n"
    whole = test_mmengine.trained(2, tmp_path / 'whole', config=config)
    running = agents(count, 'dist_train.sh', tmp_path / 'whole/config.py', '--work-dir', tmp_path / 'run', '--resume',
                     folder=tmp_path)
    kill_one(running[-1], tmp_path / 'run/iter_3.pth')
    assert 'exitcode: -9' in end(running, tmp_path)
    saved = torch.load(tmp_path / 'run/iter_24.pth', weights_only=False)
    assert_equal(saved['optimizer']['state'], whole[0]['optimizer']['state'])
    assert_equal(*[{name: value for name, value in weights.items() if 'running' not in name}
                   for weights in (saved['state_dict'], whole[0]['weights'])])


@pytest.mark.parametrize('config', ['one_machine', 'sharded'])
def test_accelerate_launch(config, tmp_path):
    """With the configurations that we hand out, on two processes: the training of torchrun, whole or sharded."""
    flags = ['--train_batch_size', 6, '--max_train_steps', 3]
    test_diffusion.trained(2, tmp_path / 'whole', *flags)
    run = tmp_path / 'run'
    command = [sys.executable, '-m', 'accelerate.commands.launch', '--config_file', f'configs/accelerate/{config}.yaml',
               '--num_processes', 2, '--mixed_precision', 'no', '--main_process_port', free_port(), 'tools/train_diffusion.py',
               tmp_path / 'whole/config.py', '--output_dir', run, *test_diffusion.FLAGS, *flags]
    end([start(command, tmp_path / 'log.txt')], tmp_path)
    saved = [load_file(folder / 'unet/diffusion_pytorch_model.safetensors') for folder in (tmp_path / 'whole/run', run)]
    assert_equal(*saved, 1e-4 if config == 'sharded' else 0)
