"""Pipelines of the installed diffusers with small random weights: each makes an image in two steps, with a binary denoiser.

Prompts are given as embeddings, so that no text encoder and no tokenizer is needed; many pipelines still need the package
transformers to be imported.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import Tensor, nn

from bnn_plugins import binarize_, fuse_, pack_, verify
from bnn_plugins.convert.flow import tensors
from bnn_plugins.layers import BinaryLayer

from .fresh import Fresh
from .pipelines_inputs import PIPELINES, Pipeline
from .pipelines_offload import copied, try_all, ways
from .stages import compared, same_random
from .tables import OK, PIPELINE_STAGES

WAYS = ('whole',)
small_networks = nullcontext
METHOD = 'bireal'
DENOISERS = ('transformer', 'unet', 'prior', 'decoder')
FACTS = ('config', 'layers', 'binary', 'replaced', 'traced', 'fusion', 'refused')


def names() -> list[str]:
    return sorted(PIPELINES)


class Case:
    """A pipeline, how it is called, and a process that knows only what it saved.

    Attributes:
        given: what the call takes, and how its components are made.
        pipe: the pipeline, its denoiser float, then binary, then packed.
    """

    def __init__(self, name: str):
        self.cls, self.given = getattr(diffusers, name), PIPELINES[name]
        if getattr(self.cls, '_backends', None):
            raise ValueError(f'it needs the package {self.cls._backends[-1]}')
        self.elsewhere = Fresh(self.loaded)

    def build(self):
        same_random()
        self.pipe = self.cls(**self.given.components())
        self.pipe.set_progress_bar_config(disable=True)
        for part in self.pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval()
        self.denoiser = next(name for name in DENOISERS if isinstance(getattr(self.pipe, name, None), nn.Module))
        return self.pipe

    def loaded(self, folder: Path, name: str) -> None:
        index = json.loads((folder / name / 'model_index.json').read_text())
        absent = {part: None for part, entry in index.items() if entry == [None, None]}
        pipe = self.cls.from_pretrained(folder / name, **absent)
        pipe.set_progress_bar_config(disable=True)
        torch.save(made(pipe, self.given), folder / f'{name}.pt')


def made(pipe, given: Pipeline) -> list[Tensor]:
    """What a pipeline makes of the same noise, always."""
    same_random()
    with torch.no_grad():
        out = pipe(**given.inputs())
    arrays = [value for value in vars(out).values() if value is not None]
    return [tensor.float() for value in arrays for tensor in tensors(torch.from_numpy(value) if isinstance(value, np.ndarray)
                                                                     else value)]


def case(name: str, way: str, facts: dict) -> Case:
    return Case(name)


def run(case: Case, folder: Path, facts: dict) -> Iterator[tuple[str, str]]:
    state: dict = {}
    for stage in PIPELINE_STAGES:
        try:
            said = STAGES[stage](case, folder, state, facts)
        except Exception as error:  # what a host raises is the result
            said = f'{type(error).__name__}: {" ".join(str(error).split()) or "no message"}'
        yield stage, said[:300]
        if said != OK and stage in ('float', 'build', 'finite', 'packed'):
            return


def finite(case: Case) -> tuple[list[Tensor], str]:
    outputs = made(case.pipe, case.given)
    return outputs, OK if outputs and all(x.isfinite().all() for x in outputs) else 'what it makes is not finite'


def float_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    state['float'] = copied(case.build())
    said = finite(case)[1]
    if said == OK:
        state['float'].save_pretrained(folder / 'float')
    return said


def build_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    model = getattr(case.pipe, case.denoiser)
    facts['config'] = f'{case.denoiser}: {type(model).__name__}'
    report = binarize_(model, METHOD)
    facts.update(layers=len(report.rows), binary=len(report.binary), replaced=len(report.replaced), traced=report.traced)
    return OK if any(isinstance(module, BinaryLayer) for module in model.modules()) else 'no layer became binary'


def finite_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    state['expected'], said = finite(case)
    state['latent'] = copy.deepcopy(getattr(case.pipe, case.denoiser))
    case.pipe.save_pretrained(folder / 'latent')
    return said


def packed_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    pack_(case.pipe)
    return compared(state['expected'], made(case.pipe, case.given))


def saved_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    case.pipe.save_pretrained(folder / 'packed')
    for name in ('latent', 'packed'):
        case.elsewhere(folder, name)
        said = compared(state['expected'], torch.load(folder / f'{name}.pt'))
        if said != OK:
            return f'{name}: {said}'
    return OK


def offloaded_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    """Every way to keep the parts elsewhere computes the same as without; one that fails with the float pipeline, too, is the
    host's, and named in ``facts``."""
    args, kwargs = first_call(case)

    def alone(model: nn.Module) -> list[Tensor]:
        same_random()
        with torch.no_grad():
            return [x for x in tensors(model(*copy.deepcopy(args), **copy.deepcopy(kwargs))) if x.is_floating_point()]

    pipes = {'packed': case.pipe, 'float': state['float']}
    expected = {kind: [made(pipe, case.given), alone(getattr(pipe, case.denoiser))] for kind, pipe in pipes.items()}
    found = ways(pipes, case.denoiser, folder, lambda pipe: made(pipe, case.given), alone)
    said, host = try_all(found, folder / 'offloaded', expected)
    facts['refused'] = '; '.join(host)
    return said


def first_call(case: Case) -> tuple[tuple, dict]:
    """What the pipeline calls its denoiser with first."""
    calls = []
    handle = getattr(case.pipe, case.denoiser).register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
    made(case.pipe, case.given)
    handle.remove()
    return calls[0]


def fused_stage(case: Case, folder: Path, state: dict, facts: dict) -> str:
    """The fused denoiser against the latent one, on what the pipeline calls it with first."""
    args, kwargs = first_call(case)
    fused = copy.deepcopy(getattr(case.pipe, case.denoiser))
    facts['fusion'] = fuse_(fused).summary()
    report = verify(state['latent'], fused, *args, **kwargs)
    return OK if report.ok else report.summary()


STAGES = {'float': float_stage, 'build': build_stage, 'finite': finite_stage, 'packed': packed_stage, 'saved': saved_stage,
          'offloaded': offloaded_stage, 'fused': fused_stage}
