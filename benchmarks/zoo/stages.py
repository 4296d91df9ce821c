"""What is asked of one model of a host, in this order."""

import copy
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bnn_plugins import BinarizationReport, fuse_, pack_, summarize, verify
from bnn_plugins.layers import BinaryLayer
from bnn_plugins.layers.multihead import split_names

from .structure import must_be_real
from .tables import OK, STAGES

DRAWS = 4  # of inputs, until each latent has a gradient


@dataclass
class Case:
    """One model and how it is called.

    Attributes:
        float_model: builds the float model, with its initial weights.
        binary_model: makes one binary: takes the float model, returns the binary one and its report.
        losses: of a model in training mode, the tensors that are summed up.
        outputs: of a model in evaluation mode, all its tensors.
        inputs: positional arguments of a call in evaluation mode, and keyword arguments.
        reload: takes a latent and a packed model and a folder: saves both, loads both, gives what each computes.
        steady: names of layers that have one input vector, computed from a timestep or a condition alone.
        cannot: why it does not run in float, ``''`` where it may.
        predicts: whether the losses and outputs are predictions, not features that another model reads.
    """

    float_model: Callable[[], nn.Module]
    binary_model: Callable[[nn.Module], tuple[nn.Module, BinarizationReport]]
    losses: Callable[[nn.Module], list[Tensor]]
    outputs: Callable[[nn.Module], list[Tensor]]
    inputs: tuple[tuple, dict]
    reload: Callable[[nn.Module, nn.Module, Path], Iterable[list[Tensor]]]
    steady: Callable[[nn.Module], set[str]] = lambda model: set()
    predicts: bool = True
    cannot: str = ''


def same_random(seed: int = 0) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def run(case: Case, folder: Path, facts: dict) -> Iterator[tuple[str, str]]:
    """Run a case; yields each stage that was reached, and :data:`OK` or one sentence. ``facts`` is filled in.

    A stage that fails ends the case where the next ones need it.
    """
    state: dict = {}
    for stage in STAGES:
        try:
            said = globals()[f'{stage}_stage'](case, state, folder, facts)
        except Exception as error:  # what any host may raise is the result
            said = sentence(error)
        yield stage, said[:300]
        if said != OK and stage in ('float', 'build', 'loss', 'packed'):
            return


def sentence(error: Exception) -> str:
    """What is wrong, in one line and without the folders of this machine."""
    text = ' '.join(str(error).split()).partition(', the current sys.path')[0] or 'no message'
    return re.sub(r'(/[^/\s\'"]+)+/', '', f'{type(error).__name__}: {text}')[:300]


def float_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    if case.cannot:
        return case.cannot
    same_random()
    model = case.float_model()
    state['float'] = copied(case, model)
    losses = losses_of(case, model)
    if not all(loss.isfinite().all() for loss in losses):
        return 'the loss of the float model is not finite'
    state['real'] = must_be_real(model, losses, case.predicts)
    total(losses).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    state['without gradient'] = {new for name in without for new in split_names(name[:name.rfind('.') + 1],
                                                                                name[name.rfind('.') + 1:])}
    state['real'] |= case.steady(copy.deepcopy(state['float']).eval())
    outputs = outputs_of(case, copy.deepcopy(state['float']))
    finite = any(output.isfinite().all() for output in outputs)
    return OK if finite else 'the float model computes no finite number'


def build_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    same_random()
    state['latent'], report = case.binary_model(state['float'])
    state['binary'] = [name for name, module in state['latent'].named_modules() if isinstance(module, BinaryLayer)]
    facts.update(layers=len(report.rows), binary=len(report.binary), replaced=len(report.replaced), traced=report.traced)
    return OK if state['binary'] else 'no layer became binary'


def loss_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    state['losses'] = losses_of(case, state['latent'])
    return OK if all(loss.isfinite().all() for loss in state['losses']) else 'the loss is not finite'


def gradients_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    """Each latent weight has one that is finite and not all zero, if the float model's has; for some heads another draw of
    the inputs matters, since what is assigned to which level depends on the predictions."""
    total(state.pop('losses')).backward()
    known = dict(state['latent'].named_modules())
    latents = {f'{name}.weight': known[name].weight for name in state['binary'] if isinstance(known[name].weight, Tensor)}
    latents = {name: weight for name, weight in latents.items() if weight.requires_grad}
    for seed in range(DRAWS):
        wrong = [name for name, weight in latents.items() if weight.grad is not None and not weight.grad.isfinite().all()]
        absent = [name for name, weight in latents.items() if name not in state['without gradient']
                  and (weight.grad is None or not weight.grad.any())]
        if wrong or not absent:
            break
        total(losses_of(case, state['latent'], seed + 1)).backward()
    return f'not finite: {wrong}' if wrong else f'none or zero: {absent}' if absent else OK


def real_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    wrong = sorted(state['real'].intersection(state['binary']))
    facts['wrong'] = len(wrong)
    return f'{len(wrong)} must stay real: {wrong}' if wrong else OK


def packed_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    state['latent'].zero_grad()
    state['packed'] = pack_(copied(case, state['latent']))
    state['expected'] = outputs_of(case, state['latent'])
    drawn = torch.get_rng_state()
    same_random()
    state['draws'] = not torch.equal(torch.get_rng_state(), drawn)  # the model itself draws random numbers
    said = compared(state['expected'], outputs_of(case, state['packed']))
    return said if said == OK or compared(state['expected'], outputs_of(case, state['latent'])) == OK else 'outputs are random'


def saved_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    same_random()
    for name, found in zip(('latent', 'packed'), case.reload(state['latent'], state['packed'], folder), strict=True):
        said = compared(state['expected'], found)
        if said != OK:
            return f'{name}: {said}'
    return OK


def fused_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    fused = copy.deepcopy(state['packed'])
    facts['fusion'] = fuse_(fused).summary()
    args, kwargs = case.inputs
    if state['draws']:
        for model in (state['latent'], fused):
            model.register_forward_pre_hook(lambda *_: same_random())
    report = verify(in_mode(state['latent'], False), in_mode(fused, False), *args, **kwargs)
    return OK if report.ok else report.summary()


def summary_stage(case: Case, state: dict, folder: Path, facts: dict) -> str:
    args, kwargs = case.inputs
    same_random()
    str(summarize(state['packed'], args or kwargs))
    return OK


def copied(case: Case, model: nn.Module) -> nn.Module:
    """A copy, also of a model that keeps tensors of its last loss with their graph."""
    try:
        return copy.deepcopy(model)
    except RuntimeError:
        with torch.no_grad():
            case.losses(in_mode(model, True))
        return copy.deepcopy(model)


def in_mode(model: nn.Module, training: bool) -> nn.Module:
    model.train(training)  # of some models of mmdet it returns nothing
    return model


def losses_of(case: Case, model: nn.Module, seed: int = 0) -> list[Tensor]:
    same_random(seed)
    return [loss for loss in case.losses(in_mode(model, True)) if loss.requires_grad]


def total(losses: list[Tensor]) -> Tensor:
    return torch.stack([loss.float().mean() for loss in losses]).sum()


def outputs_of(case: Case, model: nn.Module) -> list[Tensor]:
    same_random()
    with torch.no_grad():
        return case.outputs(in_mode(model, False))


def compared(expected: list[Tensor], found: list[Tensor]) -> str:
    """:data:`OK` for the same numbers; NaN equals NaN."""
    if [x.shape for x in expected] != [x.shape for x in found]:
        return 'outputs of other shapes'
    pairs = [(a.nan_to_num(), b.nan_to_num()) for a, b in zip(expected, found, strict=True)]
    unequal = [k for k, pair in enumerate(pairs) if not torch.equal(*pair)]
    if not unequal:
        return OK
    worst = max(float((expected[k].double() - found[k].double()).abs().nan_to_num().max()) for k in unequal)
    return f'{len(unequal)} of {len(expected)} outputs differ, by up to {worst:.3g}'
