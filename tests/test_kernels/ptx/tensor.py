"""mma.sync and wgmma with 1-bit and int8 operands; fragments and descriptors as in the PTX ISA, sections on both instructions.

Both kinds share their fragments byte by byte: a row of A or a column of B is 32 bytes, eight words.
"""

import numpy as np

from .block import Block, EmulationError

SWIZZLES = {0: 0, 1: 3, 2: 2, 3: 1}  # of a descriptor: how many address bits above 7 are mixed into those above 4
ROW_BYTES = {1: 128, 2: 64, 3: 32}


def mma(block: Block, op: tuple, operands: tuple) -> None:
    """m16n8k256 (b1) or m16n8k32 (s8): D = A B + C per warp."""
    if op[3] not in ('m16n8k256', 'm16n8k32') or op[4:6] != ('row', 'col'):
        raise NotImplementedError(f'the emulator does not know {".".join(op)}')
    target, a, b, c = operands
    columns = np.concatenate([block.read(register, 'u32').reshape(-1, 8, 4) for register in b], 2)  # [warp, column, word]
    counts = _products(_rows(block, a), columns, op)
    for i, (register, addend) in enumerate(zip(target, c, strict=True)):  # row g or g + 8, column 2 t or 2 t + 1
        part = counts[:, 8 * (i // 2):8 * (i // 2) + 8, i % 2::2].reshape(-1)
        block.write(register, block.read(addend, 's32') + part.astype(np.int32))


def wgmma(block: Block, op: tuple, operands: tuple) -> None:
    """m64nNk256 (b1) or m64nNk32 (s8) per warpgroup, A in registers; and the instructions around it."""
    if op[1] == 'wait_group':
        if operands != (0,):
            raise NotImplementedError('the emulator knows wgmma.wait_group 0 only')
        block.in_flight &= block.uncommitted
        block.feeding &= block.uncommitted
    elif op[1] == 'mma_async':
        _wgmma(block, op, *operands[:4])
    elif op[1] == 'commit_group':
        block.uncommitted.clear()
    elif op[1] == 'fence':
        block.unfenced.clear()
    else:
        raise NotImplementedError(f'the emulator does not know {".".join(op)}')


def _wgmma(block, op, target, a, descriptor, accumulate) -> None:
    columns = int(op[4][len('m64n'):op[4].index('k')])
    if not block.shared.fenced:
        raise EmulationError('wgmma reads shared memory without a proxy fence between a write and the barrier behind it')
    if unfenced := block.unfenced.intersection((*target, *a)):
        raise EmulationError(f'wgmma uses {min(unfenced)}, written to after the last wgmma.fence')
    block.in_flight.difference_update(target)  # wgmma of one shape follow each other on the same accumulators
    rows = _rows(block, a).reshape(-1, 64, 8)  # four warps of 16 rows
    descriptors = block.read(descriptor, 'u64').reshape(len(rows), -1)
    if (descriptors != descriptors[:, :1]).any():
        raise EmulationError('a descriptor differs within a warpgroup')
    b = np.stack([_described(block, int(value), columns) for value in descriptors[:, 0]])
    counts = _products(rows, b, op)
    keep = block.read(accumulate, 'pred')
    thread = np.arange(128)
    row, column = thread // 32 * 16 + thread % 32 // 4, thread % 4 * 2
    for i, register in enumerate(target):  # columns in eights; row g or g + 8, column 2 t or 2 t + 1
        part = counts[:, row + 8 * (i // 2 % 2), i // 4 * 8 + column + i % 2].reshape(-1).astype(np.int32)
        old = block.registers.get(register)
        if old is None and keep.any():
            raise EmulationError(f'{register} accumulates before anything was written to it')
        block.write(register, part if old is None else part + np.where(keep, old.view(np.int32), 0))
    block.in_flight.update(target)
    block.feeding.update(a)
    block.uncommitted.update(target, a)
    block.unfenced.difference_update(target)


def _rows(block, registers) -> np.ndarray:
    """The operand A: uint32 [warps, 16 rows, 8 words] from (row g, word t), (g + 8, t), (g, t + 4), (g + 8, t + 4)."""
    parts = [block.read(register, 'u32').reshape(-1, 8, 4) for register in registers]
    return np.concatenate([np.concatenate(parts[:2], 1), np.concatenate(parts[2:], 1)], 2)


def _described(block, descriptor: int, rows: int) -> np.ndarray:
    """Uint32 [rows, 8] from shared memory, K-major, 32 bytes of each row."""
    start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
    swizzle = descriptor >> 62
    if not swizzle or descriptor >> 49 & 7:
        raise NotImplementedError('the emulator knows swizzled descriptors without base offset only')
    row, byte = np.arange(rows)[:, None], np.arange(32)[None, :]
    places = start + row // 8 * stride + row % 8 * ROW_BYTES[swizzle] + byte
    places ^= ((places >> 7) & (2**SWIZZLES[swizzle] - 1)) << 4
    block.shared.check(places)
    return block.shared.data[places].view(np.uint32)


def _products(a: np.ndarray, b: np.ndarray, op: tuple) -> np.ndarray:
    """[.., M, 8] and [.., N, 8] words to [.., M, N]."""
    if op[-2:] in (('and', 'popc'), ('xor', 'popc')):
        combine = np.bitwise_and if op[-2] == 'and' else np.bitwise_xor
        return np.bitwise_count(combine(a[..., :, None, :], b[..., None, :, :])).sum(-1, dtype=np.int64)
    if op[-3:] == ('s8', 's8', 's32') or op[-3:] == ('s32', 's8', 's8'):
        signed = [np.ascontiguousarray(x).view(np.int8).astype(np.int64) for x in (a, b)]
        return np.einsum('...mk,...nk->...mn', *signed)
    raise NotImplementedError(f'the emulator does not know {".".join(op)}')
