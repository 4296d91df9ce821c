"""The checkpoints of unfinished runs, small enough to travel in git to another machine."""

import shutil
from pathlib import Path

from bnn_plugins.integrations.mmengine.run import latest_checkpoint


def copy_checkpoints(source: Path, target: Path) -> None:
    """The newest whole checkpoint of ``source``, and the best one if it keeps that, replace those of ``target``."""
    newest = latest_checkpoint(source)
    if newest is None:
        return
    target.mkdir(parents=True, exist_ok=True)
    files = {Path(newest), *source.glob('best_*.pth')}
    for file in files:
        part = target / f'{file.name}.part'
        shutil.copyfile(file, part)
        part.replace(target / file.name)
    for old in {path.name for path in target.glob('*.pth')} - {file.name for file in files}:
        (target / old).unlink()


def save_state(work_dir: Path, state: Path, finished: bool) -> None:
    """Keep in ``state`` what a run needs to go on elsewhere, and nothing of a finished one."""
    if finished:
        shutil.rmtree(state, ignore_errors=True)
    else:
        copy_checkpoints(work_dir, state)


def restore_state(work_dir: Path, state: Path) -> None:
    """Fill a work dir without checkpoints from ``state``."""
    if latest_checkpoint(work_dir) is None:
        copy_checkpoints(state, work_dir)
