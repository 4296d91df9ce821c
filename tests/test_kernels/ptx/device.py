"""A chip that emulates: plans of the tensor-core backend, run on CPU tensors."""

from collections.abc import Callable
from functools import cache

import torch

from bnn_kernels.triton import tensorcore
from bnn_kernels.triton.launch import Launch
from bnn_kernels.triton.tensorcore_offline import argument_type, arguments, compiled

from .block import Block, GlobalMemory
from .instructions import execute
from .program import Program, parse


class Chip:
    """`launch` for `tensorcore.TensorCore`: emulates every one. `change` edits the PTX first: for mutations."""

    def __init__(self, capability: tuple[int, int], wgmma: bool = False, processors: int = 1,
                 change: Callable[[str], str] = lambda ptx: ptx):
        self.machine = tensorcore.Machine(capability, processors, wgmma)
        self.change, self.executed = change, []

    def backend(self) -> tensorcore.TensorCore:
        return tensorcore.TensorCore(self.machine, self.launch)

    def launch(self, launch: Launch, *tensors: torch.Tensor | None) -> None:
        kernel = compiled(launch, tensors, self.machine.capability)
        program = parsed(self.change(kernel.ptx))
        values = [value for name, value in arguments(launch, tensors).items() if argument_type(name, value) != 'constexpr']
        run(program, values, launch.programs, kernel.shared)
        self.executed.append(program)


parsed = cache(parse)


def run(program: Program, values: list, programs: int, shared_bytes: int) -> None:
    """Runs a kernel on tensors and numbers; what it writes to the tensors is in them afterwards."""
    tensors = {value.data_ptr(): _bytes(value) for value in values if isinstance(value, torch.Tensor)}
    memory = GlobalMemory(list(tensors.values()))
    bases = dict(zip(tensors, memory.bases, strict=True))
    arguments = [bases[value.data_ptr()] if isinstance(value, torch.Tensor) else value for value in values]
    arguments += [0] * (len(program.parameters) - len(arguments))  # Triton's own scratch pointers
    for index in range(programs):
        Block(program, memory, arguments, index, programs, shared_bytes).run(execute)
    for key, data in tensors.items():
        data[:] = memory.data[bases[key]:bases[key] + len(data)]


def _bytes(tensor: torch.Tensor):
    """The memory of a dense tensor, whatever the order of its dimensions, as uint8."""
    flat = torch.as_strided(tensor, (tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy()
