"""What happens to a fused model, told to its regions when it happens, so that a call need not look.

- A module, parameter or buffer is assigned: torch's registration hooks.
- ``load_state_dict``: a hook of each module whose tensors are folded.
- ``.to()``, ``.half()``, ...: torch has no hook, so these modules have an ``_apply`` of their own, as an attribute.
"""

from collections.abc import Iterable
from functools import cache, partial
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from torch import nn
from torch.nn.modules import module as torch_module


class Region(Protocol):
    def changed(self, module: nn.Module, what: str) -> None:
        """``what``: 'modules', 'tensors' (assigned or loaded) or 'moved'."""


REGIONS: WeakKeyDictionary[nn.Module, WeakSet] = WeakKeyDictionary()  # of each module that they run


def watch(region: Region, modules: Iterable[nn.Module], folded: Iterable[nn.Module]) -> None:
    """Tell ``region`` what happens to ``modules``, and to the tensors of those that are ``folded``."""
    listen()
    for module in modules:
        REGIONS.setdefault(module, WeakSet()).add(region)
    for module in folded:
        REGIONS.setdefault(module, WeakSet()).add(region)
        vars(module)['_apply'] = partial(moved, module)
        if loaded not in module._load_state_dict_post_hooks.values():
            module.register_load_state_dict_post_hook(loaded)


def forget(module: nn.Module) -> None:
    """Take back what ``watch`` did to a module."""
    REGIONS.pop(module, None)
    if getattr(vars(module).get('_apply'), 'func', None) is moved:
        del vars(module)['_apply']
    hooks = module._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is loaded]:
        del hooks[key]


def tell(module: nn.Module, what: str) -> None:
    for region in list(REGIONS.get(module, ())):
        region.changed(module, what)


def moved(module: nn.Module, *args, **kwargs) -> nn.Module:
    result = type(module)._apply(module, *args, **kwargs)
    tell(module, 'moved')
    return result


def loaded(module: nn.Module, _) -> None:
    tell(module, 'tensors')


@cache
def listen() -> None:
    """From now on, torch tells of what is assigned to any module."""
    def assigned(what: str):
        def hook(module: nn.Module, name: str, value: object) -> None:
            if module in REGIONS:
                tell(module, what)
        return hook

    torch_module.register_module_module_registration_hook(assigned('modules'))
    torch_module.register_module_parameter_registration_hook(assigned('tensors'))
    torch_module.register_module_buffer_registration_hook(assigned('tensors'))
