"""What the compiler made of the tensor-core kernels, and what a model of the chip makes of that: no GPU is needed, or timed.

``python -m benchmarks.gpu.profile`` compiles every kernel below and prints where it differs from the committed profile;
``--update`` writes the new one. What the file holds is an exact property of the machine code, how long each unit is busy for a
tile among it, but for the last columns: the clocks of a tile on a full multiprocessor of Hopper by the latency model of
`pipeline`, activations from memory. These are a model, no measurement.
"""

import argparse
import csv
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton import knobs

from bnn_kernels import Epilogue
from bnn_kernels.geometry import Conv2dGeometry
from bnn_kernels.triton import tensorcore
from bnn_kernels.triton.launch import Launch
from bnn_kernels.triton.tensorcore_offline import compiled

from . import pipeline
from .layers import Convolution
from .pipeline import MEMORY, MMA_RATE, PARTITIONS, WGMMA_RATE, Instruction

RESULTS = Path(__file__).parent / 'results'
TARGETS = {'sm_80': ((8, 0), False), 'sm_89': ((8, 9), False), 'sm_90a mma': ((9, 0), False), 'sm_90a wgmma': ((9, 0), True)}
LAYERS = {f'{channels} {kernel}x{kernel}': Convolution(channels, channels, kernel, 1, 80)
          for channels, kernel in ((64, 3), (128, 3), (256, 3), (512, 3), (1024, 3), (256, 1))}
EPILOGUES = ('sign', 'block', 'sums')
TILES = 10  # that a block walks over in the model
TRIMMED = {'sm_89': ('sign',), 'sm_90a mma': ('sign',)}  # what the others already tell

class Machine(NamedTuple):
    """The machine code of a kernel."""

    registers: int
    stack: int  # bytes per thread; more than 0 is spilling
    instructions: list[Instruction]

    def loop(self) -> list[Instruction]:
        """The longest loop with MMAs in it: what is done for one tile."""
        loops = []
        for branch in self.instructions:
            target = re.search(r'0x([0-9a-f]+)', branch.operands)
            if branch.name == 'BRA' and target and int(target[1], 16) < branch.address:
                body = [i for i in self.instructions if int(target[1], 16) <= i.address <= branch.address]
                if any('MMA' in i.name for i in body):
                    loops.append(body)
        return max(loops, key=len)


def disassembled(cubin: bytes) -> Machine:
    """Through cuobjdump, which comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        tool = knobs.nvidia.cuobjdump.path
        usage, code = [subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
                       for option in ('--dump-resource-usage', '--dump-sass')]
    registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', usage).groups()
    lines = re.findall(r'^\s+/\*([0-9a-f]{4,5})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);.*\n'
                       r'\s+/\* 0x([0-9a-f]{16}) \*/', code, re.MULTILINE)
    return Machine(int(registers), int(stack), [Instruction(int(address, 16), name, operands, bool(guard), int(control, 16))
                                                for address, guard, name, operands, control in lines])


NO_RESULT = ('ST', 'BRA', 'EXIT', 'BAR', 'WARPGROUP', 'WARPSYNC', 'DEPBAR', 'LDGDEPBAR', 'FENCE', 'MEMBAR', 'NOP', 'RED')


def hazards(loop: list[Instruction]) -> list[str]:
    """What a loop does to registers of wgmma between its issue and the wait, ptxas's work as well as ours.

    Nothing may write to the activations, which are read while it runs, or touch the accumulators, but for the next wgmma. The
    loop is walked twice, for what its end does to its beginning.
    """
    found, activations, accumulators = [], set(), set()
    for i in [*loop, *loop]:
        operands = [part.strip() for part in re.split(r',(?![^\[]*\])', i.operands)]
        if match := re.match(r'\w*GMMA\.64x(\d+)x', i.name):
            wide, narrow = _registers(operands[0], int(match[1]) // 2), _registers(operands[1], 4)
            if narrow & accumulators:
                found.append(f'{i.address:#x}: {i.name} {i.operands} reads accumulators')
            activations |= narrow
            accumulators |= wide
            continue
        if i.name.startswith('WARPGROUP.DEPBAR'):
            activations, accumulators = set(), set()
            continue
        touched = {int(number) for number in re.findall(r'\bR(\d+)', i.operands)}
        written = set()
        if not i.name.startswith(NO_RESULT):
            # A predicate may come first; that of a comparison is all that it writes.
            place = 1 if operands[0].startswith('P') and i.name.startswith(('SHFL', 'LOP3', 'VOTE')) else 0
            width = 4 if '.128' in i.name else 2 if re.search(r'\.64|WIDE|^CS2R$', i.name) else 1
            written = _registers(operands[place], width)
        if written & activations or (touched | written) & accumulators:
            found.append(f'{i.address:#x}: {i.name} {i.operands}')
    return found


def _registers(operand: str, count: int) -> set[int]:
    match = re.match(r'R(\d+)', operand)
    return set(range(int(match[1]), int(match[1]) + count)) if match else set()


def launch_of(target: str, layer: Convolution, epilogue: str) -> tuple[Launch, tuple[torch.Tensor | None, ...]]:
    """A call as it would be launched, and its tensors: batch 8, exact zero padding, float16 shortcut, RPReLU."""
    capability, wgmma = TARGETS[target]
    launches = []
    backend = tensorcore.TensorCore(tensorcore.Machine(capability, 132, wgmma), lambda *launch: launches.append(launch))
    outputs = layer.outputs
    call = dict(x_words=torch.zeros(8, layer.size, layer.size, layer.channels // 32, dtype=torch.int32),
                w_words=torch.zeros(outputs, layer.kernel, layer.kernel, layer.channels // 32, dtype=torch.int32),
                geometry=Conv2dGeometry(layer.channels, outputs, layer.kernel, stride=layer.stride, padding=layer.kernel // 2))
    vector = torch.zeros(outputs)
    if epilogue == 'sign':
        backend.binary_conv2d_sign(**call, threshold=vector.int(), flip=vector.bool(), out_groups=1)
    elif epilogue == 'sums':
        backend.binary_conv2d(**call)
    else:
        backend.binary_block2d(
            **call, epilogue=Epilogue(vector, vector, 'prelu', vector, vector, vector, vector),
            shortcut=torch.zeros(8, outputs, layer.out_size, layer.out_size, dtype=torch.float16), dtype=torch.float16,
            pack=True, keep=True)
    launch, *tensors = launches[0]
    return launch, tuple(tensors)


def profile(target: str, name: str, epilogue: str) -> dict[str, str]:
    """One row."""
    capability, wgmma = TARGETS[target]
    layer = LAYERS[name]
    launch, tensors = launch_of(target, layer, epilogue)
    binary = compiled(launch, tensors, capability)
    machine = disassembled(binary.cubin)
    loop = machine.loop()
    units = {name: round(clocks) for name, clocks in occupancy(loop, capability, launch.options['num_warps']).items()}
    block_m, block_n = launch.numbers['BLOCK_M'], launch.numbers['BLOCK_N']
    mix = Counter(i.name.partition('.')[0] for i in loop)
    row = dict(
        target=target, layer=name, epilogue=epilogue, tile=f'{block_m}x{block_n}', registers=machine.registers,
        spilled=machine.stack, shared=binary.shared, mma=sum('MMA' in i.name for i in loop), mma_name=_mma_name(loop),
        waits=sum(i.name.startswith('WARPGROUP.DEPBAR') for i in loop), loop=len(loop),
        mix=' '.join(f'{name}:{count}' for name, count in sorted(mix.items())), **units, busiest=max(units, key=units.get))
    if capability == (9, 0):
        words = layer.kernel**2 * layer.channels // 32
        machine = tensorcore.Machine(capability, 132, wgmma)
        blocks = tensorcore.residents(machine, epilogue, launch.numbers['OP'], words, block_m, block_n)
        clocks = pipeline.walked(pipeline.steps(loop), blocks, TILES, pipeline.COLD) / TILES / blocks
        row |= dict(blocks=blocks, clocks=round(clocks),
                    products_per_clock=round(block_m * block_n * layer.kernel**2 * layer.channels / clocks))
    else:
        row |= dict(blocks='', clocks='', products_per_clock='')
    return {key: str(value) for key, value in row.items()}


def occupancy(loop: list[Instruction], capability: tuple[int, int], warps: int) -> dict[str, float]:
    """Clocks per tile and unit of a multiprocessor that has this block only."""
    name = [i.name.partition('.')[0] for i in loop]
    count = Counter(name)
    per_partition = warps / PARTITIONS
    return dict(
        issue=len(loop) * per_partition,
        alu=pipeline.ALU_CLOCKS * sum(count[n] for n in pipeline.ALU) * per_partition,
        float=per_partition * (pipeline.FLOAT_CLOCKS * sum(count[n] for n in pipeline.FLOAT)
                               + pipeline.IMAD_CLOCKS * count['IMAD']),
        special=pipeline.SPECIAL_CLOCKS * sum(count[n] for n in pipeline.SPECIAL) * per_partition,
        memory=sum(4 if '.128' in i.name else 2 if '.64' in i.name else 1 for i in loop
                   if i.name.partition('.')[0] in MEMORY | {'SHFL'}) * warps,
        tensor=sum(_mma_clocks(i.name, capability, warps) for i in loop))


def _mma_clocks(name: str, capability: tuple[int, int], warps: int) -> float:
    if match := re.match(r'BGMMA\.64x(\d+)x256', name):
        return 64 * int(match[1]) * 256 / WGMMA_RATE * warps / 4  # once per warpgroup
    return 16 * 8 * 256 / MMA_RATE[capability] * warps if name.startswith('BMMA.168256') else 0


def _mma_name(loop: list[Instruction]) -> str:
    return ' '.join(sorted({i.name for i in loop if 'MMA' in i.name}))


def cases() -> Iterator[tuple[str, str, str]]:
    for target in TARGETS:
        for layer in LAYERS:
            for epilogue in TRIMMED.get(target, EPILOGUES):
                if epilogue != 'sums' or layer == '128 3x3':
                    yield target, layer, epilogue


def path() -> Path:
    """One file per version of Triton: another compiler, another code."""
    return RESULTS / f'profile_triton-{triton.__version__.partition("+")[0]}.csv'


def read(file: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with file.open() as lines:
        return {(row['target'], row['layer'], row['epilogue']): row for row in csv.DictReader(lines)}


def differences(old: dict, new: dict) -> list[str]:
    """One line per value that differs."""
    lines = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key, {}), new.get(key, {})
        lines += [f'{" ".join(key)}: {column} {before.get(column, "-")} -> {after.get(column, "-")}'
                  for column in before | after if before.get(column) != after.get(column)]
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--update', action='store_true', help='write the committed profile anew')
    args = parser.parse_args()
    new = {case: profile(*case) for case in cases()}
    old = read(path()) if path().exists() else {}
    changed = differences(old, new)
    print('\n'.join(changed) or 'no differences')
    if args.update:
        with path().open('w', newline='') as file:
            writer = csv.DictWriter(file, next(iter(new.values())))
            writer.writeheader()
            writer.writerows(new.values())
    elif changed:
        sys.exit(1)


if __name__ == '__main__':
    main()
