"""How many instructions per clock a multiprocessor issues: the numbers that the model in `profile` assumes.

The kernels are generated and compiled at run time by NVRTC, which comes with torch; no CUDA toolkit is needed.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch

from .supervise import Rows

ITERATIONS = 512
IN_FLIGHT = 32  # wgmma before a wait, whose latency would count after only a few
B1, S8, F16 = 'b1', 's8', 'f16'
KINDS = {B1: ('k256.s32.b1.b1{and}', 256), S8: ('k32.s32.s8.s8', 32), F16: ('k16.f32.f16.f16', 16)}
SCALAR = {'popc': 'popc.b32 %0, %0;', 'lop3': 'lop3.b32 %0, %0, %1, %2, 0x96;', 'add': 'add.u32 %0, %0, %1;',
          'shf': 'shf.l.wrap.b32 %0, %0, %1, 7;', 'mad': 'mad.lo.u32 %0, %0, %1, %2;', 'fma': 'fma.rn.f32 %0, %0, %1, %2;'}
FRAME = '''extern "C" __global__ void rate_{name}(int* out, long long* clocks, int iterations) {{
  extern __shared__ __align__(1024) unsigned char shared[];
  {setup}
  __syncthreads();
  long long start = clock64();
  #pragma unroll 1
  for (int i = 0; i < iterations; i++) {{
{body}
  }}
  long long end = clock64();
  {result}
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
  if (threadIdx.x == 0) clocks[blockIdx.x] = end - start;
}}
'''


class Rate(NamedTuple):
    """A kernel that repeats one instruction."""

    name: str
    source: str
    per_iteration: int  # instructions per thread, warp or warpgroup
    lanes: int  # threads that issue one of them together
    products: int  # of one instruction; 0 where it is no MMA
    threads: tuple[int, ...]  # per block
    least: tuple[int, int]  # compute capability; 9.0 means 9.0a for wgmma


def rates() -> Iterator[Rate]:
    for name, text in SCALAR.items():
        yield _scalar(name, text)
    for name, kind, operation in (('mma b1 and', B1, '.and.popc'), ('mma b1 xor', B1, '.xor.popc'), ('mma int8', S8, '')):
        yield _mma(name, kind, operation)
    for kind, columns in ((B1, 64), (B1, 128), (S8, 64), (S8, 128), (F16, 128)):
        yield _wgmma(f'wgmma {kind} n{columns}', kind, columns)


def rows(device: torch.device, dry: bool = False) -> Rows:
    """One per instruction and block size."""
    for rate in rates():
        for threads in rate.threads[:1 if dry else None]:
            yield dict(name=rate.name, threads=threads), (dict if dry else partial(measure, rate, threads, device))


def measure(rate: Rate, threads: int, device: torch.device) -> dict:
    properties = torch.cuda.get_device_properties(device)
    if rate.least > (properties.major, properties.minor) or (rate.least == (9, 0) and properties.major != 9):
        raise RuntimeError(f'there is none on compute capability {properties.major}.{properties.minor}')
    capability = '90a' if rate.least == (9, 0) else f'{properties.major}{properties.minor}'
    kernel = torch.cuda._compile_kernel(rate.source, f'rate_{rate.name.replace(" ", "_")}', compute_capability=capability)
    out = torch.empty(properties.multi_processor_count * threads, dtype=torch.int32, device=device)
    clocks = torch.empty(properties.multi_processor_count, dtype=torch.int64, device=device)
    for _ in range(2):  # the first one warms up
        kernel(grid=(properties.multi_processor_count, 1, 1), block=(threads, 1, 1), args=[out, clocks, ITERATIONS],
               shared_mem=32768)
    per_clock = ITERATIONS * rate.per_iteration * threads / rate.lanes / clocks.double().median().item()
    return dict(per_clock=round(per_clock, 4), products_per_clock=round(per_clock * rate.products) or '')


def _scalar(name: str, text: str) -> Rate:
    kind, c = ('float', 'f') if name == 'fma' else ('unsigned', 'r')
    lines = [f'    asm volatile("{text}" : "+{c}"(x[{i}]) : "{c}"(y), "{c}"(z));' for i in range(16)]
    setup = f'{kind} x[16], y = threadIdx.x, z = iterations; for (int i = 0; i < 16; i++) x[i] = threadIdx.x * (i + 3);'
    result = f'{kind} all = 0; for (int i = 0; i < 16; i++) all += x[i]; int sum = (int)all;'
    source = FRAME.format(name=name, setup=setup, body='\n'.join(lines), result=result)
    return Rate(name, source, 16, 1, 0, (128, 512, 1024), (8, 0))


def _mma(name: str, kind: str, operation: str) -> Rate:
    types, depth = KINDS[kind]
    text = f'mma.sync.aligned.m16n8{types.format(**{"and": ""}).replace(".s32.", ".row.col.s32.", 1)}.s32{operation}'
    lines = [f'    asm volatile("{text} {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {{%0,%1,%2,%3}};" : '
             + ', '.join(f'"+r"(c[{4 * i + j}])' for j in range(4))
             + ' : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));' for i in range(8)]
    setup = ('unsigned a0 = threadIdx.x * 77, a1 = a0 ^ 0x1234567, a2 = a0 + 99, a3 = ~a0, b0 = a0 * 3, b1 = a0 * 5; '
             'int c[32]; for (int i = 0; i < 32; i++) c[i] = 0;')
    result = 'int sum = 0; for (int i = 0; i < 32; i++) sum += c[i];'
    source = FRAME.format(name=name.replace(' ', '_'), setup=setup, body='\n'.join(lines), result=result)
    return Rate(name, source, 8, 32, 16 * 8 * depth, (128, 256, 512), (8, 0))


def _wgmma(name: str, kind: str, columns: int) -> Rate:
    types, depth = KINDS[kind]
    count, (ctype, c) = columns // 2, ('float', 'f') if kind == F16 else ('int', 'r')
    text = (f'wgmma.mma_async.sync.aligned.m64n{columns}{types.format(**{"and": ".and.popc"})} '
            f'{{{", ".join(f"%{i}" for i in range(count))}}}, {{{", ".join(f"%{count + i}" for i in range(4))}}}, '
            f'%{count + 4}, {"1, 1, 1, 0" if kind == F16 else "1"};')
    operands = ', '.join(f'"+{c}"(c[{i}])' for i in range(count))
    line = f'    asm volatile("{text}" : {operands} : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "l"(descriptor));'
    body = '\n'.join(['    asm volatile("wgmma.fence.sync.aligned;");', *[line] * IN_FLIGHT,
                      '    asm volatile("wgmma.commit_group.sync.aligned;");',
                      '    asm volatile("wgmma.wait_group.sync.aligned 0;");'])
    setup = f'''for (int i = threadIdx.x; i < 8192; i += blockDim.x) ((unsigned*)shared)[i] = i * 2654435761u;
  asm volatile("fence.proxy.async.shared::cta;");
  unsigned base = (unsigned)__cvta_generic_to_shared(shared);
  unsigned long long descriptor = ((base >> 4) & 0x3fff) | (1ull << 16) | (64ull << 32) | (1ull << 62);
  unsigned a0 = threadIdx.x * 77, a1 = a0 ^ 0x1234567, a2 = a0 + 99, a3 = ~a0;
  {ctype} c[{count}]; for (int i = 0; i < {count}; i++) c[i] = 0;'''
    result = f'{ctype} all = 0; for (int i = 0; i < {count}; i++) all += c[i]; int sum = (int)all;'
    source = FRAME.format(name=name.replace(' ', '_'), setup=setup, body=body, result=result)
    return Rate(name, source, IN_FLIGHT, 128, 64 * columns * depth, (128, 256), (9, 0))
