"""Compiles a launch of the tensor-core backend for a chip that is not here, once: for tests and profiles."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from . import tensorcore_rewrite
from .launch import Launch
from .tensorcore_kernels import RUNTIME

POINTERS = {torch.int32: '*i32', torch.int8: '*i8', torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}


class Compiled(NamedTuple):
    ptx: str  # as ptxas gets it
    cubin: bytes
    shared: int  # bytes


def compiled(launch: Launch, tensors: Sequence[torch.Tensor | None], capability: tuple[int, int]) -> Compiled:
    """What a launch on tensors like these would compile on a GPU of this compute capability."""
    named = arguments(launch, tensors)
    signature = tuple((name, argument_type(name, value)) for name, value in named.items())
    constants = tuple((name, named[name]) for name, kind in signature if kind == 'constexpr')
    return _compiled(launch.kernel, signature, constants, tuple(launch.options.items()), 10 * capability[0] + capability[1])


def arguments(launch: Launch, tensors: Sequence[torch.Tensor | None]) -> dict[str, Any]:
    """Of the kernel, by name."""
    return dict(zip(launch.kernel.arg_names, (*tensors, *launch.values), strict=True))


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
