"""How long a multiprocessor of Hopper takes for a loop of machine code: a latency model, no measurement.

The loop is walked instruction by instruction as the hardware does it: in order, by the stall counts, scoreboards and wait
masks that ptxas has put into every instruction, for as many warps as share one of the four partitions, each unit taken for as
long as it is busy. Latencies of memory are assumptions: `COLD`, `WARM`, `TABLE`.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

# Clocks that one warp instruction occupies a unit of one of the four partitions of a multiprocessor: 32 over the lanes of the
# unit (CUDA C++ Programming Guide, table of arithmetic throughput). IMAD shares the float unit at half rate.
ALU = {'BMSK', 'F2FP', 'FMNMX', 'FSEL', 'FSET', 'FSETP', 'I2FP', 'IABS', 'IADD', 'IADD3', 'IMNMX', 'ISETP', 'LEA', 'LOP3',
       'MOV', 'P2R', 'PLOP3', 'PRMT', 'R2P', 'SEL', 'SGXT', 'SHF', 'VIADD', 'VIADDMNMX', 'VIMNMX'}
FLOAT = {'FADD', 'FFMA', 'FMUL', 'HADD2', 'HFMA2', 'HMUL2'}
SPECIAL = {'F2F', 'F2I', 'FLO', 'I2F', 'MUFU', 'POPC'}
MEMORY = {'LD', 'LDG', 'LDGSTS', 'LDL', 'LDS', 'LDSM', 'ST', 'STG', 'STL', 'STS', 'STSM'}
ALU_CLOCKS, FLOAT_CLOCKS, IMAD_CLOCKS, SPECIAL_CLOCKS = 2, 1, 2, 8
PARTITIONS = 4
# Products of bits per clock and multiprocessor: 8 times the int8 rate. On 8.9 and for wgmma that is an assumption; on an H200
# others have measured at least 26 500 for wgmma, on a GH200 17 700 for mma.sync.
MMA_RATE = {(8, 0): 16384, (8, 9): 8192, (9, 0): 16384}
WGMMA_RATE = 32768
COLD, WARM = 750, 290  # clocks until activations and shortcuts are there: from memory, from the L2 cache
TABLE, SHARED, STORE, WGMMA, MMA = 45, 26, 20, 60, 33  # beyond the time of the unit
LATENCY = {'alu': 5, 'float': 4, 'special': 22, 'other': 6}


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str
    guarded: bool = False  # by a predicate
    control: int = 7 << 46 | 7 << 49 | 1 << 41  # its upper 64 bits, with stall count and scoreboards


class Step(NamedTuple):
    """An instruction in the model; clocks."""

    unit: str
    busy: int  # of the unit, for one warp
    latency: int  # to its result, beyond `busy`; -1: that of an activation
    stall: int  # to the next instruction of the same warp
    sets: tuple[int, ...]  # scoreboards that its result frees
    reads: tuple[int, ...]  # scoreboards that its operands free, once read
    waits: tuple[int, ...]  # scoreboards that it waits for
    drains: bool  # waits for all wgmma


def steps(loop: Sequence[Instruction]) -> list[Step]:
    """Of a loop. Loads before the last MMA, or with a predicate, are of activations and shortcuts, the others of tables."""
    last = max(place for place, i in enumerate(loop) if 'MMA' in i.name)
    found = []
    for place, i in enumerate(loop):
        unit, busy, latency = _unit(i, place < last)
        control = i.control
        found.append(Step(unit, busy, latency, max(1, control >> 41 & 15), _scoreboard(control >> 46),
                          _scoreboard(control >> 49), tuple(k for k in range(6) if control >> 52 >> k & 1),
                          i.name.startswith('WARPGROUP.DEPBAR')))
    return found


def _scoreboard(bits: int) -> tuple[int, ...]:
    return () if bits & 7 > 5 else (bits & 7,)


def _unit(i: Instruction, early: bool) -> tuple[str, int, int]:
    """Unit, clocks that it is busy for one warp, and the latency behind that."""
    name, wide = i.name.partition('.')[0], 4 if '.128' in i.name else 2 if '.64' in i.name else 1
    if name in ALU:
        return 'alu', ALU_CLOCKS, LATENCY['alu']
    if name in FLOAT:
        return 'float', FLOAT_CLOCKS, LATENCY['float']
    if name == 'IMAD':
        return 'float', IMAD_CLOCKS, LATENCY['alu']
    if name in SPECIAL:
        return 'special', SPECIAL_CLOCKS, LATENCY['special']
    if name == 'LDG':
        return 'memory', 4 * wide, -1 if early or i.guarded else TABLE
    if name in MEMORY | {'SHFL'}:
        return 'memory', 4 * wide, STORE if name.startswith('ST') else SHARED
    if 'GMMA' in name:
        return 'tensor', 64 * int(re.search(r'64x(\d+)x', i.name)[1]) * 256 // WGMMA_RATE, WGMMA
    if name == 'BMMA':
        return 'tensor', 16 * 8 * 256 * PARTITIONS // MMA_RATE[9, 0], MMA
    return 'other', 0, LATENCY['other']


def walked(body: Sequence[Step], warps: int, tiles: int, activation: int) -> int:
    """Clocks until `warps` warps of a partition, one of each block on the multiprocessor, have walked `tiles` tiles."""
    place, ready, wgmma = [0] * warps, [7 * warp for warp in range(warps)], [0] * warps
    boards = [[0] * 6 for _ in range(warps)]
    free = dict.fromkeys(('alu', 'float', 'special', 'memory', 'tensor', 'other'), 0)
    clock, last, end = 0, 0, len(body) * tiles
    while True:
        first, chosen = None, None
        for warp in (*range(last + 1, warps), *range(last + 1)):
            if place[warp] == end:
                continue
            step = body[place[warp] % len(body)]
            at = max(ready[warp], free[step.unit], *[boards[warp][k] for k in step.waits], wgmma[warp] if step.drains else 0)
            if first is None or at < first:
                first, chosen = at, warp
                if at <= clock:
                    break
        if first is None:
            return max(clock, *ready, *map(max, boards))
        clock, last, step = max(clock, first), chosen, body[place[chosen] % len(body)]
        if step.unit != 'other':
            free[step.unit] = clock + step.busy
        result = clock + step.busy + (activation if step.latency < 0 else step.latency)
        if step.unit == 'tensor':
            wgmma[chosen] = result
        for board in step.sets:
            boards[chosen][board] = max(boards[chosen][board], result)
        for board in step.reads:
            boards[chosen][board] = max(boards[chosen][board], clock + step.busy + 12)
        ready[chosen] = clock + step.stall
        place[chosen] += 1
        clock += 1
