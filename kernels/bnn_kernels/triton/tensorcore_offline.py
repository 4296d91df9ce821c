"""Compiles a plan of the tensor-core backend for a chip that is not here: for tests and profiles."""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from . import tensorcore_rewrite
from .tensorcore import Plan
from .tensorcore_kernels import RUNTIME

POINTERS = {torch.int32: '*i32', torch.int8: '*i8', torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}


class Compiled(NamedTuple):
    ptx: str  # as ptxas gets it
    cubin: bytes
    shared: int  # bytes


def compiled(plan: Plan, capability: tuple[int, int]) -> Compiled:
    """What a launch of this plan would compile on a GPU of this compute capability."""
    signature = tuple((name, argument_type(name, plan.arguments[name])) for name in plan.kernel.arg_names)
    constants = tuple((name, plan.arguments[name]) for name, kind in signature if kind == 'constexpr')
    return _compiled(plan.kernel, signature, constants, tuple(plan.options.items()), 10 * capability[0] + capability[1])


def argument_type(name: str, value: Any) -> str:
    """The Triton type of an argument; 'constexpr' for what is part of the compiled kernel."""
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return 'i32' if name in RUNTIME else 'constexpr'


@cache
def _compiled(kernel, signature, constants, options, capability: int) -> Compiled:
    tensorcore_rewrite.install()
    aligned = {(i,): [['tt.divisibility', 16]] for i, (_, kind) in enumerate(signature) if kind.startswith('*')}
    source = GluonASTSource(kernel, dict(signature), dict(constants), aligned)
    result = triton.compile(source, GPUTarget('cuda', capability, 32), dict(options))
    return Compiled(result.asm['ptx'], result.asm['cubin'], result.metadata.shared)
