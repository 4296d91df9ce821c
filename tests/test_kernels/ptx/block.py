"""The state of one block of threads. A register is an array of unsigned integers, one per thread; a predicate one of bool."""

import numpy as np

from .program import Instruction, Memory, Program

RAW = {0: np.bool_, 1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
TYPES = {'f32': np.float32, 'f16': np.float16, 'pred': np.bool_}
TYPES |= {f'{kind}{bits}': np.dtype(f'{"int" if kind == "s" else "uint"}{bits}').type
          for kind in 'sub' for bits in (8, 16, 32, 64)}


class EmulationError(RuntimeError):
    """The program does what no correct program does."""


class GlobalMemory:
    """Tensors with gaps between them; an access outside of all of them raises."""

    ALIGNMENT = 256

    def __init__(self, tensors: list[np.ndarray]):
        self.bases, end = [], self.ALIGNMENT
        for tensor in tensors:
            self.bases.append(end)
            end += -(-tensor.nbytes // self.ALIGNMENT) * self.ALIGNMENT + self.ALIGNMENT
        self.data, self.real = np.zeros(end, np.uint8), np.zeros(end, np.bool_)
        for base, tensor in zip(self.bases, tensors, strict=True):
            self.data[base:base + tensor.nbytes] = tensor.reshape(-1).view(np.uint8)
            self.real[base:base + tensor.nbytes] = True

    def check(self, places: np.ndarray) -> None:
        if (places >= len(self.data)).any() or not self.real[places].all():
            raise EmulationError('an access outside of all tensors')

    written = check


class SharedMemory:
    """Bytes that are known once they were written, and known to all threads behind a barrier."""

    def __init__(self, size: int):
        self.data, self.real = np.zeros(size, np.uint8), np.zeros(size, np.bool_)
        self.open, self.committed, self.arrived = [], [], []  # asynchronous copies on their way
        self.fenced = self.proxied = True  # whether wgmma, the other proxy, sees all; will, behind a barrier

    def check(self, places: np.ndarray) -> None:
        if (places >= len(self.data)).any() or not self.real[places].all():
            raise EmulationError('a read of shared memory that nothing was written to, or not for all threads yet')

    def wait(self, left: int) -> None:
        while len(self.committed) > left:
            self.arrived += self.committed.pop(0)
            self.proxied = False

    def barrier(self) -> None:
        for places, values in self.arrived:
            self.data[places], self.real[places] = values, True
        self.fenced = self.proxied
        self.arrived = []


class Block:
    """Runs a program for one block of threads."""

    def __init__(self, program: Program, memory: GlobalMemory, arguments: list[int], index: int, count: int,
                 shared_bytes: int):
        self.program, self.memory, self.shared = program, memory, SharedMemory(shared_bytes)
        self.parameters = dict(zip(program.parameters, arguments, strict=True))
        self.threads = program.threads
        thread = np.arange(self.threads, dtype=np.uint32)
        self.special = {'%tid.x': thread, '%ctaid.x': np.full_like(thread, index), '%nctaid.x': np.full_like(thread, count),
                        'global_smem': np.zeros(self.threads, np.uint64)}
        self.registers, self.mask = {}, None
        # Of wgmma: accumulators and A operands in flight, those of them not committed, and what was written since a fence.
        self.in_flight, self.feeding, self.uncommitted, self.unfenced = set(), set(), set(), set()

    def run(self, execute) -> None:
        """`execute(block, instruction)` does everything but branches."""
        at, instructions = 0, self.program.instructions
        while at < len(instructions):
            instruction = instructions[at]
            at += 1
            self.mask = self._mask(instruction)
            if instruction.op[0] in ('bra', 'ret'):
                if self.mask is not None and self.mask.any() and not self.mask.all():
                    raise EmulationError(f'threads part at {instruction.text}')
                if self.mask is None or self.mask.all():
                    if instruction.op[0] == 'ret':
                        return
                    at = self.program.labels[instruction.operands[0]]
            else:
                execute(self, instruction)

    def read(self, operand, kind: str, anything: bool = False) -> np.ndarray:
        """The value of a register or a number, one per thread, as PTX type `kind`.

        anything: of a register that nothing was written to take random bits, for who takes other bytes out of it only.
        """
        kind = TYPES[kind]
        size = np.dtype(kind).itemsize
        if isinstance(operand, int):
            if kind is np.bool_:
                return np.full(self.threads, bool(operand))
            return np.full(self.threads, operand & (2**(8 * size) - 1), RAW[size]).view(kind)
        value = self.special.get(operand)
        if value is None:
            if operand in self.in_flight:
                raise EmulationError(f'{operand} is read while wgmma is in flight')
            if operand not in self.registers and anything:
                return np.random.default_rng(0).integers(0, 2**(8 * size), self.threads, RAW[size], False).view(kind)
            if operand not in self.registers:
                raise EmulationError(f'{operand} is read before anything was written to it')
            value = self.registers[operand]
        if value.dtype == np.bool_:
            return value
        return value.astype(RAW[size]).view(kind)

    def write(self, operand: str, value: np.ndarray, masked: bool = True) -> None:
        """Puts `value` into a register, extended by its own signedness, cut, or as it is; only where the guard holds."""
        if operand == '_':
            return
        if operand in self.in_flight or operand in self.feeding:
            raise EmulationError(f'{operand} is written to while wgmma is in flight')
        self.unfenced.add(operand)
        size = self.program.registers[operand]
        value = np.ascontiguousarray(value)
        if size and value.dtype.kind == 'f':
            value = value.view(RAW[value.dtype.itemsize])
        if size and value.dtype.itemsize != size:
            value = value.astype(RAW[size])
        value = value if not size else value.view(RAW[size])
        if masked and self.mask is not None and not self.mask.all():
            if operand not in self.registers:
                self.registers[operand] = np.zeros(self.threads, RAW[size])
            value = np.where(self.mask, value, self.registers[operand])
        self.registers[operand] = value

    def addresses(self, operand: Memory) -> np.ndarray:
        return self.read(operand.base, 'u64').astype(np.int64) + operand.offset

    def load(self, memory, addresses: np.ndarray, size: int) -> np.ndarray:
        """Uint8 [threads, size]; zero where the guard does not hold."""
        active = np.ones(len(addresses), np.bool_) if self.mask is None else self.mask
        places = self._places(addresses[active], size)
        memory.check(places)
        result = np.zeros((len(addresses), size), np.uint8)
        result[active] = memory.data[places]
        return result

    def store(self, memory, addresses: np.ndarray, values: np.ndarray) -> None:
        """Uint8 [threads, size], where the guard holds."""
        active = np.ones(len(addresses), np.bool_) if self.mask is None else self.mask
        places = self._places(addresses[active], values.shape[1])
        memory.written(places)
        memory.data[places] = values[active]

    def _places(self, addresses: np.ndarray, size: int) -> np.ndarray:
        if (addresses % size).any():
            raise EmulationError(f'an address that is no multiple of {size}')
        return addresses[:, None] + np.arange(size)

    def _mask(self, instruction: Instruction) -> np.ndarray | None:
        if instruction.guard is None:
            return None
        return self.read(instruction.guard, 'pred') ^ instruction.negated
