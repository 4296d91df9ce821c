"""``pack_``: packed modules in the places of the latent ones."""

import copy
from collections.abc import Callable

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..layers import BinaryLayer
from ..progress import track
from .packed import PACKED_CLASSES, PackedModule

# Called with each model before it is packed: a host whose models say whether they are quantized notes it there, or refuses.
PACKED: list[Callable[[nn.Module], None]] = []
# What a subclass of a latent layer may define without changing what it computes or can do.
DESCRIPTIVE = {'__init__', 'extra_repr', *vars(type('Empty', (), {'__annotations__': {}}))}


def pack_(model):
    """Replace every binary layer by its packed form, in place, and switch to evaluation mode; returns ``model``.

    The packed model computes what the latent model computes in evaluation mode: the accumulators are the same integers and
    the epilogue is written in the same order. Hooks of a layer stay. A model that is a binary layer itself cannot be replaced:
    the packed layer is returned and ``model`` stays as it is. Of a pipeline (an object with ``components``, as those of
    diffusers) all modules are packed that have binary layers.

    Raises:
        TypeError: for what is no module and no pipeline. ValueError: when the model has no binary layer, is packed already,
            or has one that cannot be packed; it is then as before.

    Example:
        >>> model = nn.Sequential(BinaryConv2d(16, 32, 3, method='xnor'), nn.BatchNorm2d(32)).eval()
        >>> x = torch.randn(1, 16, 8, 8)
        >>> latent = model(x)
        >>> torch.equal(pack_(model)(x), latent)
        True
    """
    parts = parts_of(model)
    forms = [(part, packed) for part in parts if (packed := packed_forms(part))]
    if not forms:
        already = any(isinstance(module, PackedModule) for part in parts for module in part.modules())
        raise ValueError(f'this {type(model).__name__} is packed already' if already else
                         f'this {type(model).__name__} has no binary layer: binarize_ it first')
    for part, _ in forms:
        for note in PACKED:
            note(part)
    packed, *_ = [replace_(part, packed) for part, packed in forms]
    return packed if isinstance(model, nn.Module) else model


def parts_of(model) -> list[nn.Module]:
    """The module itself, or those of a pipeline."""
    if isinstance(model, nn.Module):
        return [model]
    components = getattr(model, 'components', None)
    if not isinstance(components, dict):
        raise TypeError(f'pack_ takes a module or a pipeline, but got a {type(model).__name__}')
    return [part for part in components.values() if isinstance(part, nn.Module)]


def packed_forms(model: nn.Module, strict: bool = True) -> dict[nn.Module, PackedModule]:
    """``{latent module: its packed form}`` of all those in ``model``, which stays as it is.

    Raises:
        ValueError: for a module that cannot be packed, unless ``strict=False``, which leaves it out.
    """
    found = {}
    for name, module in model.named_modules():
        if (known := latent_class(module)) is None:
            continue
        if not (why := obstacle(module, known)):
            found[module] = known
        elif strict:
            raise ValueError(f'the {type(module).__name__} {name!r} cannot be packed: {why}')
    return {module: PACKED_CLASSES[known].from_latent(module) for module, known in track(found.items(), 'pack')}


def replace_(model: nn.Module, packed: dict[nn.Module, PackedModule]) -> nn.Module:
    """Put packed modules wherever ``model`` has their latent ones; returns it in evaluation mode (see :func:`pack_`)."""
    for parent in (*model.modules(), *packed.values()):
        if parent not in packed:
            parent._modules.update({name: packed[child] for name, child in parent._modules.items() if child in packed})
    if model in packed:
        model = copy.deepcopy(packed[model])  # shares nothing with the latent layer, which lives on
    for module in model.modules():
        if isinstance(module, PackedModule):
            module.requires_grad_(False)
    model.eval()
    return model  # eval() of mmdet's ResNet returns nothing


def latent_class(module: nn.Module) -> type[nn.Module] | None:
    """The registered class that ``module`` is of, ``None`` when it has no packed form."""
    return next((cls for cls in type(module).__mro__ if cls in PACKED_CLASSES), None)


def obstacle(layer: nn.Module, known: type[nn.Module]) -> str:
    """Why a layer of the registered class ``known`` cannot be packed, ``''`` where it can: what its packed form would lose."""
    if is_parametrized(layer) or (isinstance(layer, BinaryLayer) and 'weight' not in layer._parameters):
        return ('its weight is computed (a parametrization, weight_norm, spectral_norm, pruning): remove that first, so that '
                'its result is the weight')
    if isinstance(layer, BinaryLayer) and layer.w_bits == 32:
        return ('it has real weights, which have no bits: train the second step (the method without binarize_weights=False) '
                'from this checkpoint, then pack')
    defined = {name for cls in type(layer).__mro__ if cls not in known.__mro__ for name in vars(cls)} - DESCRIPTIVE
    if defined:
        return (f'its class defines {", ".join(sorted(defined))}, which a {PACKED_CLASSES[known].__name__} has not: register '
                'a packed class for it with bnn_plugins.deploy.register_packed')
    own = [name for name, value in vars(layer).items() if callable(value) and not isinstance(value, nn.Module | type)
           and (hasattr(type(layer), name) or getattr(value, '__self__', None) is layer)]
    if own:
        return f'{", ".join(own)} was set on this object, as a method of the latent layer: remove it, or set it after packing'
    if any(hook.with_module for hook in layer._load_state_dict_pre_hooks.values()):
        return 'a hook of its load_state_dict is bound to the latent layer: register it after packing'
    return ''
