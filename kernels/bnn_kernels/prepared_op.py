"""An operator with its parameters bound, for those who call it again and again: checked once for each kind of input."""

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import checks, dispatch


class PreparedOp:
    """`PreparedOp('binary_block2d', w_words=..., ...)(x_words=..., ...)`: the arguments of a backend's method, in two parts.

    The first call with inputs of some shapes, dtypes, devices and strides is checked and dispatched as any other; later ones
    go straight to the backend that was chosen, until `set_backend` changes the choice: in eager code checks and dispatch cost
    more than the arithmetic of a small layer. Bound tensors may change their values, not their shapes or where they lie. Use
    it where `direct` is True; else call the public function, which torch.compile, torch.export, torch.jit.trace and dispatch
    modes can see. Copies and unpickled ones choose anew, for the tensors that they have.

    Raises, when called, what the public function raises.
    """

    def __init__(self, op: str, **fixed):
        self.op, self.fixed = op, fixed
        self.check = getattr(checks, op)
        self.chosen: dict[tuple, Callable] = {}

    def __getstate__(self) -> dict:
        return {**vars(self), 'chosen': {}}

    @staticmethod
    def direct(x: Tensor) -> bool:
        """Whether `x` is a plain tensor of eager code: no subclass, not being compiled or traced, no dispatch mode active."""
        return (type(x) is Tensor and not x.is_meta and not torch.compiler.is_compiling() and not torch._C._is_tracing()
                and not torch._C._len_torch_dispatch_stack())

    def __call__(self, **inputs) -> Any:
        return self.choose(inputs)(**inputs)

    def choose(self, inputs: dict[str, Tensor | None]) -> Callable[..., Any]:
        """What runs inputs of this kind, and may be joined with others (`bnn_kernels.join`); takes them by name."""
        key = (dispatch.choice(), *inputs, *map(input_signature, inputs.values()))
        call = self.chosen.get(key)
        if call is None:
            self.check(**self.fixed, **inputs)
            if len(self.chosen) >= MOST_SIGNATURES:
                self.chosen.clear()
            self.chosen[key] = call = dispatch.bind(self.op, self.fixed, inputs)
        return call


def input_signature(x: Tensor | tuple | None) -> tuple | None:
    """What decides how an input is run: tensors, and objects that hold some, share a call where they agree in it."""
    if isinstance(x, tuple):
        return tuple([input_signature(value) if isinstance(value, Tensor) else value for value in x])
    return None if x is None else (x.shape, x.stride(), x.dtype, x.device, x.is_inference())


MOST_SIGNATURES = 256  # of inputs and forced backends that one operator, or one call of several, remembers


@lru_cache(1024)
def shared_op(op: str, *numbers: tuple[str, Hashable]) -> PreparedOp:
    """The operator with only numbers bound, which the public functions share."""
    return PreparedOp(op, **dict(numbers))
