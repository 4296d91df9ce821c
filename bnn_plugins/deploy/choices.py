"""Outputs that are others although every step is right: a model that sorts, or takes the largest, makes another order of a
rounding. The latent model then goes on from what the fused parts of the packed one returned, and must compute the same."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch import Tensor, nn

from .fused import fused_parts


def tensors_in(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, list | tuple) else []


def distance(expected: object, found: object) -> tuple[float, float]:
    """The largest distance between the tensors in both, and the largest in units of the largest value of its tensor; ``inf``
    for other shapes. NaN equals NaN."""
    ones, others = tensors_in(expected), tensors_in(found)
    if [x.shape for x in ones] != [x.shape for x in others]:
        return math.inf, math.inf
    largest = relative = 0.0
    for one, other in zip(ones, others, strict=True):
        if one.numel():
            apart = float((one.double() - other.double()).abs().nan_to_num(nan=math.inf).max())
            apart = 0.0 if one.isnan().equal(other.isnan()) and one.nan_to_num().equal(other.nan_to_num()) else apart
            size = float(one.double().abs().nan_to_num(posinf=0).max())
            largest, relative = max(largest, apart), max(relative, apart / size if apart and size else apart)
    return largest, relative


@contextmanager
def recorded(packed: nn.Module) -> Iterator[dict[tuple[str, str], list]]:
    """What each call of a fused part returns while the block runs, by its name and method."""
    found: dict[tuple[str, str], list] = {}
    with ExitStack() as stack:
        for name, part in fused_parts(packed):
            def call(*args, name=name, part=part, **kwargs):
                out = part(*args, **kwargs)
                found.setdefault((name, part.method), []).append(copy.deepcopy(out))
                return out
            stack.enter_context(patch.object(part.module, part.method, call))
        yield found


def goes_on_alike(latent: nn.Module, returned: dict[tuple[str, str], list], found: object, run: Callable[[], object],
                  tolerance: float) -> bool:
    """Whether ``run`` (of ``latent``) computes ``found`` where its parts return what those of the packed model ``returned``,
    each of which must be within ``tolerance`` of what the latent part computes there."""
    alike = []
    with ExitStack() as stack:
        for (name, method), calls in returned.items():
            module, values = latent.get_submodule(name), iter(calls)
            own = getattr(module, method)

            def call(*args, own=own, values=values, **kwargs):
                out = own(*args, **kwargs)
                given = next(values, out)
                alike.append(distance(out, given)[1] <= tolerance)
                return given
            stack.enter_context(patch.object(module, method, call))
        alike.append(distance(run(), found)[1] <= tolerance)
    return all(alike)
