"""Which GPU a tensor is on: kernels, tiles and refusals depend on it. `offline.compiling_for` puts one there that is not."""

from contextlib import nullcontext
from typing import NamedTuple

import torch

from .versions import INTERPRETED


class Gpu(NamedTuple):
    """A GPU that is not there."""

    architecture: str  # these as the functions below
    capability: tuple[int, int] | None
    processors: int


stand_in: Gpu | None = None  # for all tensors, wherever they are


def is_there() -> bool:
    return stand_in is not None or torch.cuda.is_available()


def holds(device: torch.device) -> bool:
    """Whether tensors of `device` are on a GPU."""
    return stand_in is not None or device.type == 'cuda'


def architecture(device: torch.device) -> str:
    """'sm_90' of an NVIDIA GPU, 'gfx942' of an AMD one, 'interpreter' where kernels run in numpy."""
    if stand_in is not None:
        return stand_in.architecture
    if INTERPRETED:
        return 'interpreter'
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(':')[0]
    return 'sm_{}{}'.format(*torch.cuda.get_device_capability(device))


def capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU, None for an AMD one."""
    if stand_in is not None:
        return stand_in.capability
    return None if torch.version.hip else torch.cuda.get_device_capability(device)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors, or compute units."""
    return stand_in.processors if stand_in else torch.cuda.get_device_properties(device).multi_processor_count


def on(device: torch.device):
    """Triton launches on the current device."""
    if device.type != 'cuda' or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)
