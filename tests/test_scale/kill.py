"""Kills a process of a diffusion training again and again, at a random moment: ``python -m tests.test_scale.kill 20``.

Two processes train; one of them is killed (SIGKILL) somewhere in or behind a random step, also while it saves; the launcher
would end the other one. Then all are started again with ``--resume_from_checkpoint latest``. The end has to be that of a
training which was left alone, and each start has to go on at most one checkpoint behind the kill.
"""

import os
import random
import re
import signal
import sys
import tempfile
import threading
from pathlib import Path

import torch

from tests.processes import Group
from tests.test_scale import test_diffusion
from tests.test_scale.programs import train_diffusion

EVERY = 2  # steps between checkpoints


def killed(arguments: list, kept: Path, victim: int, step: int, delay: float) -> None:
    """The training, until ``victim`` has been in ``step`` for ``delay`` seconds."""
    from bnn_plugins.apps.diffusion.train import Trainer
    seed = Trainer.seed

    def seed_and_die(trainer):
        seed(trainer)
        if trainer.step == step and trainer.accelerator.process_index == victim:
            threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    Trainer.seed = seed_and_die
    train_diffusion(arguments, kept)


def kill_again_and_again(folder: Path, kills: int) -> list[tuple[int, int, int]]:
    """(step of the kill, newest checkpoint behind it, the one that was resumed before it) of each kill."""
    steps = 2 * kills + 8
    flags = ['--train_batch_size', 6, '--max_train_steps', steps, '--checkpointing_steps', EVERY,
             '--checkpoints_total_limit', 1]
    whole = test_diffusion.trained(2, folder / 'whole', *flags)
    arguments = [folder / 'whole/config.py', '--output_dir', folder / 'run', *test_diffusion.FLAGS, *flags,
                 '--resume_from_checkpoint', 'latest']
    rng, found = random.Random(0), []
    for _ in range(kills):
        start = newest(folder / 'run')
        step = min(start + rng.randrange(4), steps - 4)  # not at the end, where it might be faster
        group = Group(2, killed, arguments, folder, rng.randrange(2), step, rng.random() * 0.2, folder=folder)
        assert -signal.SIGKILL in group.wait(), group.output()
        found.append((step, newest(folder / 'run'), start))
    group = Group(2, train_diffusion, arguments, folder, folder=folder)
    assert group.wait(1800) == [0, 0], group.output()
    for rank in range(2):
        end = torch.load(folder / f'rank{rank}.pth')
        for part in ('weights', 'ema', 'optimizer'):
            test_diffusion.assert_equal(end[part], whole[rank][part])
    for step, newer, start in found:
        assert newer >= max(start, step - step % EVERY - EVERY), 'more is lost than the steps since a checkpoint'
    return found


def newest(run: Path) -> int:
    numbers = [int(name[1]) for path in run.glob('checkpoint-*') if (name := re.fullmatch(r'checkpoint-(\d+)', path.name))]
    return max(numbers, default=0)


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        for step, newer, start in kill_again_and_again(Path(folder), int(sys.argv[1])):
            print(f'resumed at {start}, killed in step {step}, the newest whole checkpoint is that of step {newer}')
