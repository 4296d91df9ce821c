"""What the instructions do, one function for each first part of a name. Types are the last part, as in PTX."""

import numpy as np

from . import tensor
from .block import RAW, TYPES, Block
from .program import Instruction

COMPARISONS = {'eq': np.equal, 'ne': np.not_equal, 'lt': np.less, 'le': np.less_equal, 'gt': np.greater,
               'ge': np.greater_equal, 'neu': np.not_equal}


def execute(block: Block, instruction: Instruction) -> None:
    """Runs one instruction. Raises NotImplementedError where it is not known."""
    function = FUNCTIONS.get(instruction.op[0])
    if function is None:
        raise NotImplementedError(f'the emulator does not know {instruction.text}')
    with np.errstate(all='ignore'):
        function(block, instruction.op, instruction.operands)


def known(*parts: str):
    """All parts of a name must be among `parts` or a type: an unknown modifier is an error, not a detail."""
    allowed = set(parts) | set(TYPES) | {'bf16', 'f16x2', 'bf16x2', 'rn', 'sync', 'aligned'}

    def check(function):
        def checked(block, op, operands):
            if unknown := set(op[1:]) - allowed:
                raise NotImplementedError(f'the emulator does not know .{".".join(unknown)} in {".".join(op)}')
            function(block, op, operands)
        return checked
    return check


def elementwise(function):
    """`function` of all operands, read in the type of the instruction."""
    @known()
    def run(block, op, operands):
        kind = op[-1]
        result = function(*[block.read(operand, kind) for operand in operands[1:]])
        block.write(operands[0], result.astype(TYPES[kind], copy=False))
    return run


@known()
def mov(block, op, operands):
    target, source = operands
    size = np.dtype(TYPES[op[-1]]).itemsize
    if isinstance(target, tuple):
        parts = block.read(source, op[-1]).view(np.uint8).reshape(block.threads, len(target), -1)
        for register, part in zip(target, parts.transpose(1, 0, 2), strict=True):
            block.write(register, _join(part))
    elif isinstance(source, tuple):
        kind = f'b{8 * size // len(source)}'
        block.write(target, _join(np.stack([block.read(item, kind) for item in source], 1).view(np.uint8)))
    else:
        block.write(target, block.read(source, op[-1]))


@known('param', 'global', 'shared', 'v2', 'v4')
def ld(block, op, operands):
    target, address = operands
    kind = op[-1]
    if op[1] == 'param':
        value = block.parameters[address.base] & (2**(8 * np.dtype(TYPES[kind]).itemsize) - 1)
        block.write(target, np.full(block.threads, value, np.uint64))
        return
    target = target if isinstance(target, tuple) else (target,)
    size = np.dtype(TYPES[kind]).itemsize
    memory = block.shared if op[1] == 'shared' else block.memory
    data = block.load(memory, block.addresses(address), size * len(target)).reshape(block.threads, len(target), size)
    for register, part in zip(target, data.transpose(1, 0, 2), strict=True):
        block.write(register, _join(part))


@known('global', 'v2', 'v4')
def st(block, op, operands):
    address, source = operands
    source = source if isinstance(source, tuple) else (source,)
    data = np.stack([block.read(register, op[-1]) for register in source], 1).view(np.uint8).reshape(block.threads, -1)
    block.store(block.memory, block.addresses(address), data)


@known('async', 'cg', 'ca', 'shared', 'global', 'commit_group', 'wait_group', 'cta')
def cp(block, op, operands):
    shared = block.shared
    if 'commit_group' in op:
        shared.committed.append(shared.open)
        shared.open = []
    elif 'wait_group' in op:
        shared.wait(operands[0])
    else:
        target, source, size, *_ = operands
        active = slice(None) if block.mask is None else block.mask
        places = block.addresses(target)[active, None] + np.arange(size)
        shared.open.append((places, block.load(block.memory, block.addresses(source), size)[active]))


def bar(block, op, operands):
    block.shared.barrier()


@known('proxy', 'async', 'shared', 'cta')
def fence(block, op, operands):
    block.shared.proxied = True


@known('lo', 'hi', 'wide')
def mul(block, op, operands):
    block.write(operands[0], _product(block, op, operands))


@known('lo', 'wide')
def mad(block, op, operands):
    product = _product(block, op, operands)
    block.write(operands[0], product + block.read(operands[3], f'{op[-1][0]}{8 * product.dtype.itemsize}'))


@known()
def shl(block, op, operands):
    value, count = block.read(operands[1], op[-1]), block.read(operands[2], 'u32').astype(np.uint64)
    wide = np.where(count < 64, value.astype(np.uint64) << np.minimum(count, 63), 0)
    block.write(operands[0], wide.astype(value.dtype))


@known()
def shr(block, op, operands):
    value, count = block.read(operands[1], op[-1]), block.read(operands[2], 'u32').astype(np.int64)
    bits = 8 * value.dtype.itemsize
    wide = value.astype(np.int64 if value.dtype.kind == 'i' else np.uint64)
    shifted = wide >> np.minimum(count, bits - 1).astype(wide.dtype)
    block.write(operands[0], np.where((count >= bits) & (value.dtype.kind == 'u'), 0, shifted).astype(value.dtype))


@known('l', 'wrap')
def shf(block, op, operands):
    low, high, count = [block.read(operand, 'u32').astype(np.uint64) for operand in operands[1:]]
    block.write(operands[0], ((((high << 32) | low) << (count & 31)) >> 32).astype(np.uint32))


@known()
def bfe(block, op, operands):
    value, position, length = [block.read(operand, 's64' if i else op[-1]).astype(np.int64)
                               for i, operand in enumerate(operands[1:])]
    field = (value >> position) & ((1 << length) - 1)
    if op[-1][0] == 's':
        field -= ((field >> (length - 1)) & 1) << length
    block.write(operands[0], field.astype(TYPES[op[-1]]))


@known()
def prmt(block, op, operands):
    # LLVM fills vectors of bytes with undefined ones. They are random here: what depends on them differs from the reference.
    low, high = [block.read(operand, 'u32', anything=True) for operand in operands[1:3]]
    selector = block.read(operands[3], 'u32')
    source = np.stack([low, high], 1).view(np.uint8)
    nibbles = (selector[:, None] >> (4 * np.arange(4, dtype=np.uint32))) & 15
    if (nibbles & 8).any():
        raise NotImplementedError('the emulator does not know the sign mode of prmt')
    block.write(operands[0], _join(np.take_along_axis(source, nibbles.astype(np.int64), 1)))


@known(*COMPARISONS)
def setp(block, op, operands):
    block.write(operands[0], COMPARISONS[op[1]](*[block.read(operand, op[-1]) for operand in operands[1:]]))


@known(*COMPARISONS)
def set_(block, op, operands):
    holds = COMPARISONS[op[1]](*[block.read(operand, op[-1]) for operand in operands[1:]])
    block.write(operands[0], np.where(holds, np.uint32(0xFFFFFFFF), np.uint32(0)))


@known()
def selp(block, op, operands):
    _, yes, no, predicate = operands
    block.write(operands[0], np.where(block.read(predicate, 'pred'), block.read(yes, op[-1]), block.read(no, op[-1])))


@known()
def cvt(block, op, operands):
    to, source = op[-2], op[-1]
    if to in ('bf16x2', 'f16x2'):  # the first source becomes the high half
        high, low = [_narrow(block.read(operand, 'f32'), to[:-2]).astype(np.uint32) for operand in operands[1:]]
        block.write(operands[0], (high << 16) | low)
    elif to in ('f16', 'bf16'):
        block.write(operands[0], _narrow(block.read(operands[1], source), to))
    elif source == 'bf16':
        block.write(operands[0], (block.read(operands[1], 'u16').astype(np.uint32) << 16).view(np.float32))
    elif (to[0] == 'f') == (source[0] == 'f'):
        block.write(operands[0], block.read(operands[1], source).astype(TYPES[to]))
    else:
        raise NotImplementedError(f'the emulator does not know {".".join(op)}')


@known('bfly')
def shfl(block, op, operands):
    target, source, distance, *_ = operands
    lanes = np.arange(32) ^ block.read(distance, 'u32').reshape(-1, 32).astype(np.int64)
    block.write(target, np.take_along_axis(block.read(source, 'u32').reshape(-1, 32), lanes, 1).reshape(-1))


def _product(block, op, operands):
    kind = TYPES[op[-1]]
    left, right = [block.read(operand, op[-1]) for operand in operands[1:3]]
    if kind is np.float32 or np.dtype(kind).itemsize == 8:
        return left * right
    bits = 8 * np.dtype(kind).itemsize
    wide = left.astype(np.int64) * right.astype(np.int64)  # of unsigned ones, the low 64 bits
    if 'wide' in op:
        return wide.astype(f'{np.dtype(kind).kind}{bits // 4}')
    if 'hi' in op:
        wide = wide if np.dtype(kind).kind == 'i' else wide.view(np.uint64)
        return (wide >> np.array(bits, wide.dtype)).astype(kind)
    return wide.astype(kind)


def _narrow(value: np.ndarray, kind: str) -> np.ndarray:
    """Float32 to the bits of float16 or bfloat16, rounded to nearest even."""
    if kind == 'f16':
        return value.astype(np.float16).view(np.uint16)
    bits = value.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(value), 0x7FFF, rounded).astype(np.uint16)


def _join(parts: np.ndarray) -> np.ndarray:
    """Uint8 [threads, size] to one unsigned integer per thread."""
    parts = np.ascontiguousarray(parts)
    return parts.view(RAW[parts.shape[1]])[:, 0]


def _popcount(value):
    return np.bitwise_count(value)


FUNCTIONS = dict(
    mov=mov, ld=ld, st=st, cp=cp, bar=bar, fence=fence, mul=mul, mad=mad, shl=shl, shr=shr, shf=shf, bfe=bfe, prmt=prmt,
    setp=setp, set=set_, selp=selp, cvt=cvt, shfl=shfl, add=elementwise(np.add), sub=elementwise(np.subtract),
    min=elementwise(np.minimum), max=elementwise(np.maximum), popc=elementwise(_popcount), neg=elementwise(np.negative),
    mma=tensor.mma, wgmma=tensor.wgmma, **{'and': elementwise(np.bitwise_and), 'or': elementwise(np.bitwise_or),
                                           'xor': elementwise(np.bitwise_xor), 'not': elementwise(np.invert)})
