"""Every way of diffusers and accelerate to keep the tensors of a pipeline elsewhere; the CPU is the device that computes.

Without ``enable_sequential_cpu_offload``, which is ``cpu_offload`` of each part on a device with a number: on 'cpu:0'
accelerate fails with float pipelines, too.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import accelerate
import torch
from torch import Tensor, nn

from .stages import compared
from .tables import OK

CPU = torch.device('cpu')
LEVELS = {'leaf_level': {}, 'block_level': {'num_blocks_per_group': 1}}
# Ways to call a pipeline or its denoiser; a denoiser by itself is called as the pipeline calls it first.
Run = Callable[[object], list[Tensor]]
Way = Callable[[str, Path], list[Tensor]]


def grouped(part, level: str, folder: Path | None) -> None:
    part.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=level, **LEVELS[level],
                              offload_to_disk_path=None if folder is None else str(folder))


def ways(pipes: dict[str, object], denoiser: str, saved: Path, make: Run, alone: Run) -> dict[str, Way]:
    """Each computes something with the pipeline of this kind, and may write to a folder.

    Args:
        pipes: ``{kind: pipeline}``.
        denoiser: the name of the denoiser in them.
        saved: folder of the saved pipelines, one for each kind.
        make: calls a pipeline.
        alone: calls a denoiser.
    """
    def of_pipe(start: Callable[[object, Path], object]) -> Way:
        def way(kind: str, folder: Path) -> list[Tensor]:
            pipe = copied(pipes[kind])
            start(pipe, folder)
            return make(pipe)
        return way

    def of_denoiser(start: Callable[[nn.Module, Path], object], run: str) -> Way:
        def way(kind: str, folder: Path) -> list[Tensor]:
            pipe = copied(pipes[kind])
            start(getattr(pipe, denoiser), folder)
            return make(pipe) if run == 'pipeline' else alone(getattr(pipe, denoiser))
        return way

    def loaded(kind: str, device_map: str) -> list[Tensor]:
        pipe = pipes[kind]
        absent = {name: None for name, part in pipe.components.items() if part is None}
        pipe = type(pipe).from_pretrained(saved / kind, device_map=device_map, **absent)
        pipe.set_progress_bar_config(disable=True)
        return make(pipe)

    def denoiser_loaded(kind: str, device_map: str | dict) -> list[Tensor]:
        cls = type(getattr(pipes[kind], denoiser))
        return alone(cls.from_pretrained(saved / kind / denoiser, device_map=device_map).eval())

    found: dict[str, Way] = {'enable_model_cpu_offload': of_pipe(lambda pipe, _: pipe.enable_model_cpu_offload(device='cpu'))}
    for level in LEVELS:
        for place in ('memory', 'disk'):
            def start(part, folder: Path, level: str = level, place: str = place) -> None:
                grouped(part, level, folder if place == 'disk' else None)
            found[f'pipeline, groups, {level}, {place}'] = of_pipe(start)
            found[f'denoiser, groups, {level}, {place}'] = of_denoiser(start, 'pipeline')
    found['cpu_offload'] = of_denoiser(lambda model, _: accelerate.cpu_offload(model, CPU), 'alone')
    found['disk_offload'] = of_denoiser(lambda model, folder: accelerate.disk_offload(model, str(folder), CPU), 'alone')
    for device_map in ('balanced', 'cpu'):
        found[f'pipeline, device_map={device_map}'] = lambda kind, _, at=device_map: loaded(kind, at)
    for device_map in ('auto', 'cpu', {'': 'cpu'}):
        found[f'denoiser, device_map={device_map}'] = lambda kind, _, at=device_map: denoiser_loaded(kind, at)
    return found


def copied(pipe):
    """A copy whose parts have no hooks of before."""
    new = copy.copy(pipe)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            setattr(new, name, copy.deepcopy(part))
    return new


def outcome(way: Way, kind: str, folder: Path, expected: list[list[Tensor]]) -> str:
    """:data:`OK` where it computes one of ``expected`` (what a pipeline, or a denoiser, computes), else one sentence."""
    folder.mkdir(parents=True)
    try:
        found = way(kind, folder)
    except Exception as error:  # what a host raises is the result
        return f'{type(error).__name__}: {" ".join(str(error).split())}'
    said = [compared(one, found) for one in expected]
    return OK if OK in said else said[0]


def try_all(found: dict[str, Way], folder: Path, expected: dict[str, list[list[Tensor]]]) -> tuple[str, list[str]]:
    """The first way that is not equal with the packed pipeline although it is with the float one, or :data:`OK`; and the ways
    that fail with both, which are the host's."""
    host = []
    for number, (name, way) in enumerate(found.items()):
        said = outcome(way, 'packed', folder / f'{number} packed', expected['packed'])
        if said != OK:
            if outcome(way, 'float', folder / f'{number} float', expected['float']) == OK:
                return f'{name}: {said}', host
            host.append(name)
    return OK, host
