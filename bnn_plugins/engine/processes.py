"""What several processes do together: one decides for all, and a file of the first is a file of every machine."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar('T')
PART = 1 << 26  # bytes that are sent at once
TAIL = 1 << 16


def check_restart() -> None:
    """To be called before a process joins the others.

    Raises:
        RuntimeError: torchrun started this process again, with the store that has the addresses of those before it
            (https://github.com/pytorch/pytorch/issues/135712): the processes would wait for each other, or be refused.
    """
    if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0' and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True':
        raise RuntimeError('torchrun starts processes again with the store of those that failed: set '
                           'TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before it, and use --rdzv_backend c10d')


def from_first(decide: Callable[[], T]) -> T:
    """What ``decide()`` returns in the first process, in all of them; an error of it is raised in all of them.

    What each process decided by itself, from files that another one writes, would differ between them.

    Example:
        >>> from_first(lambda: 3)  # one process alone
        3
    """
    if not distributed.is_initialized():
        return decide()
    box = [None, None]
    if distributed.get_rank() == 0:
        try:
            box[0] = decide()
        except Exception as error:
            box[1] = error
    distributed.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def fingerprint(path: Path) -> tuple[int, int] | None:
    """Size of a file and checksum of its end, where the archive of a checkpoint has the checksums of its parts."""
    if not path.is_file():
        return None
    with path.open('rb') as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        return size, zlib.crc32(file.read())


def share_file(path: str | Path | None) -> None:
    """Send a file of the first process to every machine that does not see it: machines need no common disk to resume.

    Args:
        path: the same in every process; nothing is sent where the first process has no such file.
    """
    if path is None or not distributed.is_initialized():
        return
    path = Path(path)
    wanted, found = from_first(lambda: fingerprint(path)), fingerprint(path)
    agree = [True] * distributed.get_world_size()
    distributed.all_gather_object(agree, wanted is None or found == wanted)
    if all(agree):
        return
    device = 'cuda' if distributed.get_backend() == 'nccl' else 'cpu'
    receives = not agree[distributed.get_rank()] and os.environ.get('LOCAL_RANK', '0') == '0'
    partial = path.with_name(f'{path.name}.part')
    if receives:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
    for start in range(0, wanted[0], PART):
        data = torch.empty(min(PART, wanted[0] - start), dtype=torch.uint8)
        if distributed.get_rank() == 0:
            with path.open('rb') as file:
                file.seek(start)
                file.readinto(data.numpy())
        data = data.to(device)
        distributed.broadcast(data, 0)
        if receives:
            with partial.open('ab') as file:
                file.write(data.cpu().numpy())
    if receives:
        partial.replace(path)
    distributed.barrier()
