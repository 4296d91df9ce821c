"""A chip that compiles and emulates: plans of the tensor-core backend, run on CPU tensors."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource

from bnn_kernels.triton import tensorcore, tensorcore_kernels, tensorcore_rewrite

from .block import Block, GlobalMemory
from .instructions import execute
from .program import Program, parse

POINTERS = {torch.int32: '*i32', torch.int8: '*i8', torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}


class Compiled(NamedTuple):
    ptx: str
    cubin: bytes
    shared: int


def compiled(plan: tensorcore.Plan, capability: tuple[int, int]) -> Compiled:
    """What `kernel[grid](...)` would compile on a GPU of this capability, without one."""
    names = plan.kernel.arg_names
    signature = tuple((name, _type(name, plan.arguments[name])) for name in names)
    constants = tuple((name, plan.arguments[name]) for name, kind in signature if kind == 'constexpr')
    return _compiled(plan.kernel, signature, constants, tuple(plan.options.items()), 10 * capability[0] + capability[1])


def _type(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    return 'i32' if name in tensorcore_kernels.RUNTIME else 'constexpr'


@cache
def _compiled(kernel, signature, constants, options, capability: int) -> Compiled:
    tensorcore_rewrite.install()
    aligned = {(i,): [['tt.divisibility', 16]] for i, (_, kind) in enumerate(signature) if kind.startswith('*')}
    source = GluonASTSource(kernel, dict(signature), dict(constants), aligned)
    result = triton.compile(source, GPUTarget('cuda', capability, 32), dict(options))
    return Compiled(result.asm['ptx'], result.asm['cubin'], result.metadata.shared)


@cache
def _parsed(ptx: str) -> Program:
    return parse(ptx)


class Chip:
    """`launch` for `tensorcore.TensorCore`: emulates every plan. `change` edits the PTX first: for mutations."""

    def __init__(self, capability: tuple[int, int], wgmma: bool = False, processors: int = 1,
                 change: Callable[[str], str] = lambda ptx: ptx):
        self.machine = tensorcore.Machine(capability, processors, wgmma)
        self.change, self.executed = change, []

    def backend(self) -> tensorcore.TensorCore:
        return tensorcore.TensorCore(self.machine, self.launch)

    def launch(self, plan: tensorcore.Plan) -> None:
        kernel = compiled(plan, self.machine.capability)
        program = _parsed(self.change(kernel.ptx))
        values = [plan.arguments[name] for name in plan.kernel.arg_names if _type(name, plan.arguments[name]) != 'constexpr']
        tensors = {value.data_ptr(): _bytes(value) for value in values if isinstance(value, torch.Tensor)}
        memory = GlobalMemory(list(tensors.values()))
        bases = dict(zip(tensors, memory.bases, strict=True))
        arguments = [bases[value.data_ptr()] if isinstance(value, torch.Tensor) else value for value in values]
        arguments += [0] * (len(program.parameters) - len(arguments))  # Triton's own scratch pointers
        for index in range(plan.programs):
            Block(program, memory, arguments, index, plan.programs, kernel.shared).run(execute)
        for key, data in tensors.items():
            data[:] = memory.data[bases[key]:bases[key] + len(data)]
        self.executed.append(program)


def _bytes(tensor: torch.Tensor):
    """The memory of a dense tensor, whatever the order of its dimensions, as uint8."""
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy()
