"""Models that torch's ``fully_shard`` (FSDP2) spreads over processes: what is gathered at once, and whole state dicts.

A sharded model trains and is saved as any other one, as long as all processes do the same: ``state_dict()`` gathers, so that
checkpoints are those of a model in one process, and ``load_state_dict()`` keeps of a whole one what belongs to this process.
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

LISTS = (nn.ModuleList, nn.Sequential)


def shard_(model: nn.Module) -> nn.Module:
    """Spread the parameters over all processes, in place; before an optimizer is built from them.

    Parts that are gathered at once are the members of the outermost lists that have no parameters of their own: blocks, not
    the layers in them, whose weights a block may use without calling the layer.

    Raises:
        RuntimeError: without a process group.

    Returns:
        the model, whose class is now torch's ``FSDPModule`` as well.
    """
    if not torch.distributed.is_initialized():
        raise RuntimeError('a model is sharded over the processes of a group: start it with torchrun')
    for part in parts(model):
        fully_shard(part)
    fully_shard(model, reshard_after_forward=True)  # by default what lies outside of the parts would stay gathered
    model.register_state_dict_post_hook(_gather)
    model.register_load_state_dict_pre_hook(_scatter)
    return model


def parts(model: nn.Module, inside: bool = False) -> list[nn.Module]:
    """What :func:`shard_` gathers at once."""
    found = []
    for child in model.children():
        if inside and not isinstance(child, LISTS):
            if not child._parameters and any(True for _ in child.parameters()):
                found.append(child)
        else:
            found += parts(child, isinstance(child, LISTS))
    return found


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole(tree):
    """Tensors in lists and dicts, gathered where they are sharded; by all processes together."""
    return tree_map(lambda x: x.full_tensor() if isinstance(x, DTensor) else x, tree)


def like(value: Tensor, sharded: Tensor) -> Tensor:
    """The part of a whole tensor that ``sharded`` holds of another one."""
    if not isinstance(sharded, DTensor) or isinstance(value, DTensor) or value.shape != sharded.shape:
        return value
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def _gather(model: nn.Module, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    for name in state_dict:
        state_dict[name] = whole(state_dict[name])


def _scatter(model: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    for name, parameter in model.named_parameters():
        if prefix + name in state_dict:
            state_dict[prefix + name] = like(state_dict[prefix + name], parameter)


def whole_state_(optimizer: torch.optim.Optimizer) -> None:
    """Let the state dict of an optimizer of sharded parameters be whole, as that of the model."""
    optimizer.register_state_dict_post_hook(lambda _, state_dict: whole(state_dict))

    def scatter(optimizer: torch.optim.Optimizer, state_dict: dict) -> dict:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        saved = [index for group in state_dict['param_groups'] for index in group['params']]
        state = {index: {key: like(value, parameter) if isinstance(value, Tensor) else value
                         for key, value in state_dict['state'].get(index, {}).items()}
                 for index, parameter in zip(saved, parameters, strict=True)}
        return {**state_dict, 'state': {index: values for index, values in state.items() if values}}
    optimizer.register_load_state_dict_pre_hook(scatter)
