"""What must stay real in a model, from the graph of autograd and from forward passes that differ in one input: neither the
rules nor the data flow of ``binarize_`` is asked."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WEIGHTED = ('ConvolutionBackward', 'AddmmBackward', 'MmBackward', 'BmmBackward')
# Nodes that sample features at positions: the features come first.
SAMPLERS = ('GridSampler2DBackward', 'DeformConv2dFunctionBackward', 'ModulatedDeformConv2dFunctionBackward')


def must_be_real(model: nn.Module, outputs: Iterable[Tensor], predicts: bool = True) -> set[str]:
    """Names of the layers of a float model that compute a prediction, a position or a gate in the graph behind ``outputs``:
    losses, or what the model returns, which are predictions if it ``predicts``."""
    ends = [output.grad_fn for output in outputs if output.grad_fn is not None]
    found = first_weights(ends) if predicts else set()
    for node in nodes(ends):
        inputs = [n for n, _ in node.next_functions]
        if node.name().startswith(SAMPLERS):
            found |= first_weights(inputs[1:])
        elif node.name().startswith('MulBackward') and len(inputs) == 2:
            for one, other in (inputs, inputs[::-1]):
                if ends_in_sigmoid(one):
                    found |= first_weights([one]) - first_weights([other])  # x * sigmoid(x) is an activation
    return {name.removesuffix('.weight') for name, parameter in model.named_parameters() if id(parameter) in found}


def nodes(ends: list) -> Iterable:
    seen, todo = set(), list(ends)
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            todo += [n for n, _ in node.next_functions]


def ends_in_sigmoid(node) -> bool:
    """Whether it is a sigmoid, but for views."""
    while node is not None and not node.name().startswith('SigmoidBackward') and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith('SigmoidBackward')


def first_weights(ends: list) -> set[int]:
    """The weights that one meets first on the ways back from some nodes, as ``id`` of the parameter."""
    found, seen, todo = set(), set(), list(ends)
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        inputs = [n for n, _ in node.next_functions if n is not None]
        weights = [weight_of(n) for n in inputs] if node.name().startswith(WEIGHTED) else []
        if any(weight is not None for weight in weights):
            found |= {id(weight) for weight in weights if weight is not None}
        else:
            todo += inputs
    return found


def weight_of(node, most: int = 24) -> Tensor | None:
    """The one matrix of parameters that a tensor is computed from (a view of it, or standardised), else ``None``."""
    leaves = set()
    for steps, n in enumerate(nodes([node]), 1):
        if steps > most or n.name().startswith(WEIGHTED):
            return None
        if hasattr(n, 'variable'):
            leaves.add(n.variable)
    weights = [leaf for leaf in leaves if leaf.ndim > 1 and leaf.numel() > len(leaf)]  # not the lengths of a weight norm
    return weights[0] if len(weights) == 1 else None


def steady_layers(model: nn.Module, call: Callable[[float, float], object]) -> set[str]:
    """Layers of which each image has one input vector that does not change with the latents, but with the conditions.

    Args:
        call: calls the model; the first number is added to its latents, the second one multiplies its timesteps.
    """
    given = ((0.0, 1.0), (1.0, 1.0), (0.0, 2.0))
    first, other, later = (inputs_of(model, lambda pair=pair: call(*pair)) for pair in given)
    return {name for name, x in first.items() if name in other and name in later and x.ndim > 1
            and x.numel() <= x.shape[0] * x.shape[-1] and torch.equal(x, other[name]) and not torch.equal(x, later[name])}


@torch.no_grad()
def inputs_of(model: nn.Module, call: Callable[[], object]) -> dict[str, Tensor]:
    """``{layer: input}`` of the first call of each linear layer and convolution."""
    seen: dict[str, Tensor] = {}
    handles = [module.register_forward_pre_hook(lambda _, given, name=name: remember(seen, name, given))
               for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    call()
    for handle in handles:
        handle.remove()
    return seen


def remember(seen: dict[str, Tensor], name: str, given: tuple) -> None:
    if name not in seen and given:
        seen[name] = given[0].clone()
