"""The emulator itself: against int8 kernels, which Triton is known to compile correctly, and instruction by instruction."""

import numpy as np
import pytest
import torch

pytest.importorskip('triton', reason='the emulator runs what Triton compiles')

import triton
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from bnn_kernels.triton import tensorcore_rewrite

from .block import Block, EmulationError, GlobalMemory
from .device import Chip, parsed, run
from .instructions import execute


@gluon.jit
def product(a, b, c, K: gl.constexpr):
    """c [32, 16] = a [32, K] b [16, K]^T in int8, by Triton's own layouts."""
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[2, 2], instr_shape=[16, 8])
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 4)
    B: gl.constexpr = gl.DotOperandLayout(1, MMA, 4)
    row = gl.arange(0, 32, layout=gl.SliceLayout(1, A))[:, None]
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, B))[None, :]
    left = gl.load(a + row * K + gl.arange(0, K, layout=gl.SliceLayout(0, A))[None, :])
    right = gl.load(b + column * K + gl.arange(0, K, layout=gl.SliceLayout(1, B))[:, None])
    result = mma_v2(left, right, gl.zeros([32, 16], gl.int32, MMA))
    row = gl.arange(0, 32, layout=gl.SliceLayout(1, MMA))[:, None]
    gl.store(c + row * 16 + gl.arange(0, 16, layout=gl.SliceLayout(0, MMA))[None, :], result)


def numbers(*shape):
    return torch.from_numpy(np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8))


def test_int8_mma_of_triton():
    source = GluonASTSource(product, dict(a='*i8', b='*i8', c='*i32', K='constexpr'), dict(K=64))
    ptx = triton.compile(source, GPUTarget('cuda', 80, 32), dict(num_warps=4)).asm['ptx']
    assert 'mma.sync.aligned.m16n8k32.row.col' in ptx
    a, b, c = numbers(32, 64), numbers(16, 64), torch.zeros(32, 16, dtype=torch.int32)
    run(parsed(ptx.replace('.satfinite', '')), [a, b, c], 1, 0)
    assert torch.equal(c, (a.double() @ b.double().t()).int())


@pytest.mark.parametrize('columns', [32, 64])
def test_int8_wgmma_of_triton(columns):
    """The kernel of the convolutions as Triton wrote it: before rewriting, it multiplies bytes."""
    def unwritten(ptx):
        return ptx.replace('k256.s32.b1.b1.and.popc', 'k32.s32.s8.s8')

    ptx = 'wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8'
    assert unwritten(tensorcore_rewrite.rewritten(f'{tensorcore_rewrite.MARKER}{ptx}')) == ptx
    x, w = numbers(70, 64).view(torch.int32), numbers(columns, 64).view(torch.int32)
    got = Chip((9, 0), True, change=unwritten).backend().binary_linear(x_words=x, w_words=w, features=512)
    left, right = (words.view(torch.int8) for words in (x, w))

    def ones(values):
        return torch.from_numpy(np.bitwise_count(values.view(torch.uint8).numpy()).sum(1, dtype=np.int32))

    sums = (left.double() @ right.double().t()).int()
    assert torch.equal(got, 4 * sums - 2 * ones(left)[:, None] - 2 * ones(right) + 512)


def after(body: str, *tensors, shared: int = 64) -> Block:
    """The state of a block of 32 threads behind some PTX; parameters are the addresses of the tensors."""
    names = [f'p{i}' for i in range(len(tensors))]
    parameters = ', '.join(f'.param .u64 {name}' for name in names)
    registers = '.reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<9>;'
    memory = GlobalMemory([tensor.view(np.uint8) for tensor in tensors])
    program = parsed(f'.visible .entry k({parameters}) .reqntid 32 {{ {registers} mov.u32 %r0, %tid.x; {body} ret; }}')
    block = Block(program, memory, memory.bases, 0, 1, shared)
    block.run(execute)
    return block


@pytest.mark.parametrize(('body', 'expected'), [
    ('shf.l.wrap.b32 %r1, 0x80000001, 6, 1;', 13), ('bfe.s32 %r1, 0x70, 4, 3;', -1), ('bfe.u32 %r1, 0x70, 4, 3;', 7),
    ('prmt.b32 %r1, 0x03020100, 0x07060504, 0x7142;', 0x07010402), ('mul.hi.u32 %r1, -1, -1;', -2), ('popc.b32 %r1, -1;', 32),
    ('mad.lo.s32 %r1, -3, 5, 7;', -8), ('mul.wide.s32 %d1, -2, 3; cvt.u32.u64 %r1, %d1;', -6), ('shr.s32 %r1, -8, 1;', -4),
    ('shl.b32 %r1, 1, 32;', 0), ('shr.u32 %r1, -8, 40;', 0), ('setp.lt.u32 %p1, -1, 1; selp.b32 %r1, 5, 6, %p1;', 6),
    ('setp.lt.s32 %p1, -1, 1; selp.b32 %r1, 5, 6, %p1;', 5), ('set.ge.u32.f32 %r1, 0f7fc00000, 0f00000000;', 0),
    ('mov.b32 %r1, 1; setp.eq.b32 %p1, 1, 2; @%p1 mov.b32 %r1, 2; @!%p1 add.s32 %r1, %r1, 5;', 6),
    ('mov.b16 %h1, 1; mov.b16 %h2, 2; mov.b32 %r1, {%h1, %h2};', 0x20001),
    ('mov.b32 %r1, 1; { .reg .b32 %r1; mov.b32 %r1, 9; } add.s32 %r1, %r1, 0;', 1),
    ('mov.b32 %r1, 0; $again: add.s32 %r1, %r1, 1; setp.lt.s32 %p1, %r1, 7; @%p1 bra $again;', 7),
    ('mul.rn.f32 %r1, 0f3fc00000, 0fc0000000;', np.float32(-3).view(np.int32)),
])
def test_instructions(body, expected):
    assert after(body).read('%r1', 's32').tolist() == [expected] * 32


@pytest.mark.parametrize(('kind', 'dtype'), [('f16', torch.float16), ('bf16', torch.bfloat16)])
def test_rounding_is_that_of_torch(kind, dtype):
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 3200, dtype=np.uint32).view(np.float32))
    values[:6] = torch.tensor([65519.996, 65520, 1 + 2**-9, 1 + 3 * 2**-9, 2**-25, -0.0])
    load = 'ld.param.b64 %d1, [p0]; mad.wide.u32 %d1, %r0, 4, %d1; ld.global.b32 %r1, [%d1+{}];'
    for place in range(0, len(values), 32):
        block = after(f'{load.format(4 * place)} cvt.rn.{kind}.f32 %h1, %r1; cvt.f32.{kind} %r2, %h1;', values.numpy())
        got = torch.from_numpy(block.read('%r2', 'f32').copy())
        assert torch.allclose(got, values[place:place + 32].to(dtype).float(), rtol=0, atol=0, equal_nan=True)


def test_shuffles_exchange_within_a_warp():
    assert after('shfl.sync.bfly.b32 %r1, %r0, 2, 31, -1;').read('%r1', 'u32').tolist() == [i ^ 2 for i in range(32)]


@pytest.mark.parametrize(('body', 'error', 'sentence'), [
    ('vote.sync.all.pred %p1, %p2, -1;', NotImplementedError, 'does not know vote.sync'),
    ('add.sat.s32 %r1, %r0, 1;', NotImplementedError, r'does not know \.sat in add\.sat\.s32'),
    ('cvt.rni.s32.f32 %r1, 0f3f800000;', NotImplementedError, 'does not know .rni'),
    ('wgmma.wait_group.sync.aligned 1;', NotImplementedError, 'wait_group 0 only'),
    ('prmt.b32 %r1, %r0, %r0, 0x8;', NotImplementedError, 'sign mode'),
    ('add.s32 %r1, %r2, 1;', EmulationError, '%r2 is read before anything was written'),
    ('prmt.b32 %r1, %r0, %r0, %r2;', EmulationError, '%r2 is read before anything was written'),
    ('setp.lt.u32 %p1, %r0, 3; @%p1 bra $end; $end:', EmulationError, 'threads part'),
    ('ld.param.b64 %d1, [p0]; ld.global.b32 %r1, [%d1+128];', EmulationError, 'outside of all tensors'),
    ('ld.param.b64 %d1, [p0]; ld.global.b32 %r1, [%d1+2];', EmulationError, 'no multiple of 4'),
    ('ld.param.b64 %d1, [p0]; st.global.b32 [%d1+-4], %r0;', EmulationError, 'outside of all tensors'),
    ('mov.b32 %r1, 0; ld.shared.b32 %r2, [%r1+0];', EmulationError, 'nothing was written to'),
])
def test_what_is_wrong_or_unknown_raises(body, error, sentence):
    with pytest.raises(error, match=sentence):
        after(body, np.zeros(32, np.int32))
