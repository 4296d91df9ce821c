"""Accuracy runs that are stopped, killed and moved to another machine end as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.accuracy import run
from benchmarks.accuracy.grid import load_grid, runs
from benchmarks.accuracy.hooks import DeadlineHook
from benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]
GRID = """
config = 'configs/classification/resnet8_reactnet_digits.py'
networks = dict(tiny=dict(type='bnn_plugins.BNNCifarResNet', depth=8, in_channels=1, base_channels=4))
options = {'train_dataloader.dataset.size': 400, 'train_dataloader.dataset.part': 'all',
           'val_dataloader.dataset': dict(type='bnn_plugins.DigitImages', test=True, upscale=2, _delete_=True),
           'val_evaluator.folds': 2, 'default_hooks.checkpoint.save_best': None, 'log_level': 'WARNING'}
validations = 3
blocks = [dict(networks=['tiny'], methods=['recu'], expansions=[None], epochs=[6], seeds=[0])]
"""
# Writes half of the third checkpoint and is gone.
KILLED_IN_A_CHECKPOINT = """
import os, signal, sys
from mmengine.fileio import LocalBackend
whole, calls = LocalBackend.put, []
def put(self, obj, filepath):
    calls.append(filepath)
    if len(calls) < 3:
        return whole(self, obj, filepath)
    with open(filepath, 'wb') as file:
        file.write(obj[:len(obj) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
LocalBackend.put = put
from benchmarks.accuracy.run import main
main()
"""


class Place:
    """A machine: a work dir, a results file and a state folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        (folder / 'tiny.py').write_text(GRID)
        self.grid = load_grid(str(folder / 'tiny.py'))
        self.run = next(iter(runs(self.grid, 'tiny')))
        self.work_dir, self.out, self.state = folder / 'work', folder / 'results/tiny.csv', folder / 'results/tiny_unfinished'
        self.flags = [str(folder / 'tiny.py'), '--work-dir', str(self.work_dir), '--out', str(self.out)]

    def work(self, deadline: float = float('inf')) -> None:
        run.work('tiny', self.grid, self.work_dir, self.out, self.state, deadline)

    def start(self, *command: str) -> subprocess.Popen:
        environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen([sys.executable, *command, *self.flags], cwd=ROOT, env=environment)

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.work_dir / self.run.key).glob('*.pth'))

    def result(self) -> dict:
        row, = read_rows(self.out)
        curve, = read_rows(self.out.with_name('tiny_curves.csv'))
        assert not self.state.exists() or not any(self.state.iterdir())
        weights = torch.load(self.work_dir / self.run.key / 'epoch_6.pth', weights_only=False)['state_dict']
        digest = sha256(b''.join(weight.numpy().tobytes() for weight in weights.values())).hexdigest()
        return {name: value for name, value in (row | curve).items() if name != 'minutes'} | {'weights': digest}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """As the command trains: the sums of torch depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp('a'))
    place.work()
    result = place.result()
    assert result['interval'] == '2'
    curve = [float(value) for value in result['val_top1'].split()]
    assert len(curve) == 3
    assert float(result['last_test_top1']) == curve[-1]
    assert float(result['best_test_top1']) == max(curve)
    return result


def test_killed_at_any_moment(tmp_path, uninterrupted):
    """In the middle of an epoch, with SIGKILL, and stopped and continued in between."""
    place = Place(tmp_path)
    for epoch in (1, 3):
        process = place.start('-m', 'benchmarks.accuracy.run')
        while f'epoch_{epoch}.pth' not in place.checkpoints():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        assert len(place.checkpoints()) <= 3
    place.work()
    assert place.result() == uninterrupted


def test_killed_in_the_middle_of_a_checkpoint(tmp_path, uninterrupted):
    """With one checkpoint kept, mmengine deletes it before it writes the next (mutation: ``max_keep_ckpts=1``)."""
    place = Place(tmp_path)
    assert place.start('-c', KILLED_IN_A_CHECKPOINT).wait() == -signal.SIGKILL
    assert place.checkpoints() == ['epoch_2.pth', 'epoch_3.pth']
    place.work()
    assert place.result() == uninterrupted


def test_another_machine_goes_on(tmp_path, uninterrupted):
    """Stopped by the time, with a validation due; then only the folder beside the results is there."""
    first = Place(tmp_path / 'first')
    run.train(first.run, first.grid, first.work_dir / first.run.key, deadline=0.0)
    run.train(first.run, first.grid, first.work_dir / first.run.key, deadline=0.0)
    first.work(deadline=0.0)
    state, = first.state.iterdir()
    assert [path.name for path in state.iterdir()] == ['epoch_2.pth']
    assert (state / 'epoch_2.pth').stat().st_size < 3e6

    second = Place(tmp_path / 'second')
    shutil.copytree(first.out.parent, second.out.parent)
    second.work()
    assert len(list((second.work_dir / second.run.key).glob('epoch_*.pth'))) == 2
    assert second.result() == uninterrupted


def test_a_work_dir_is_newer_than_the_state(tmp_path):
    place = Place(tmp_path)
    run.train(place.run, place.grid, place.work_dir / place.run.key, deadline=0.0)
    place.work(deadline=0.0)
    run.train(place.run, place.grid, place.work_dir / place.run.key, deadline=0.0)
    place.work(deadline=0.0)
    assert place.checkpoints() == ['epoch_1.pth', 'epoch_2.pth']
    assert [path.name for path in (place.state / place.run.key).iterdir()] == ['epoch_2.pth']


def test_what_chooses_does_not_measure():
    assert run.two_fold(np.array([10.0, 30.0, 20.0]), np.array([15.0, 5.0, 25.0])) == (5 + 20) / 2


def test_the_deadline_counts_wall_time(monkeypatch):
    """An epoch that would end too late is not begun; one in which the process was stopped says nothing about the next."""
    clock = iter([0.0, 10.0, 10.0, 70.0, 70.0, 82.0])
    monkeypatch.setattr(time, 'monotonic', lambda: next(clock))
    hook, runner = DeadlineHook(deadline=90.0), SimpleNamespace(epoch=0, max_epochs=9, train_loop=SimpleNamespace())
    for expected in (False, False, True):
        hook.before_train_epoch(runner)
        hook.after_train_epoch(runner)
        assert hook.stopped == expected
