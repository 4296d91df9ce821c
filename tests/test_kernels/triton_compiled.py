"""Compiles what a Triton backend would launch on a GPU that is not here, and says what the compiler made of it."""

import re
import subprocess
from contextlib import ExitStack
from typing import NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from bnn_kernels.triton import epilogue, launch, pack, sequence_kernels

POINTERS = {torch.int64: '*i64', torch.int32: '*i32', torch.int8: '*i8', torch.uint8: '*u8', torch.float64: '*fp64',
            torch.float32: '*fp32', torch.float16: '*fp16', torch.bfloat16: '*bf16'}


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name and the compiler's options."""

    kernel: triton.runtime.JITFunction
    arguments: dict
    options: dict


class Compiled(NamedTuple):
    assembly: str  # PTX or AMD's
    registers: int
    spills: int  # bytes on NVIDIA, registers on AMD


class Recorder:
    """Stands in for a kernel: a launch is noted, not made."""

    def __init__(self, kernel, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid):
        assert all(programs > 0 for programs in grid)

        def note(*arguments, **keywords):
            names = self.kernel.arg_names
            keywords |= dict(zip(names, arguments, strict=False))
            options = {name: keywords.pop(name) for name in set(keywords) - set(names)}
            self.launches.append(Launch(self.kernel, {name: keywords[name] for name in names}, options))
        return note


def launches(backend, architecture: str, op: str, **call) -> list[Launch]:
    """What `backend` launches for a call on a GPU of `architecture`, with CPU tensors in the place of its own."""
    noted = []
    kernels = [(type(backend), 'kernel'), (pack, 'pack_signs'), (epilogue, 'finish_apart'), (sequence_kernels, 'lstm_step'),
               (sequence_kernels, 'attend'), (sequence_kernels, 'pack_normalized')]
    with ExitStack() as stack:
        stack.enter_context(patch.object(launch, 'architecture', lambda device: architecture))
        for owner, name in kernels:
            stack.enter_context(patch.object(owner, name, Recorder(getattr(owner, name), noted)))
        getattr(backend, op)(**call)
    return noted


def compiled(noted: Launch, architecture: str) -> Compiled:
    """Compiles a launch as Triton would: integers 1 are constants, others and addresses may be multiples of 16."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(noted.kernel.params):
        value = noted.arguments[parameter.name]
        plain = isinstance(value, int) and not parameter.is_constexpr
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
        elif plain and (value != 1 or parameter.do_not_specialize):
            signature[parameter.name] = 'i32'
        else:
            signature[parameter.name], constants[parameter.name] = 'constexpr', value
        divisible = value % 16 == 0 if plain and not parameter.do_not_specialize else isinstance(value, torch.Tensor)
        if divisible and signature[parameter.name] != 'constexpr':
            attributes[place,] = [['tt.divisibility', 16]]
    nvidia = architecture.startswith('sm_')
    target = GPUTarget('cuda', int(architecture[3:]), 32) if nvidia else GPUTarget('hip', architecture, 64)
    result = triton.compile(ASTSource(noted.kernel, signature, constants, attributes), target=target, options=noted.options)
    return _ptxas(result.asm['ptx']) if nvidia else _amd(result.asm['amdgcn'])


def _ptxas(ptx: str) -> Compiled:
    target = re.search(r'\.target (\w+)', ptx)[1]
    ptxas = get_ptxas(int(re.search(r'sm_(\d+)', target)[1])).path
    command = [ptxas, '-v', '--fmad=false', f'--gpu-name={target}', '/dev/stdin', '-o', '/dev/null']
    said = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
    registers, spills = (int(re.search(what, said)[1]) for what in (r'Used (\d+) registers', r'(\d+) bytes spill stores'))
    return Compiled(ptx, registers, spills)


def _amd(assembly: str) -> Compiled:
    registers, spills = (int(re.search(rf'\.vgpr_{what}:\s*(\d+)', assembly)[1]) for what in ('count', 'spill_count'))
    return Compiled(assembly, registers, spills)
