"""Backend `triton-bitplane`: bits expanded to int8 -1 and +1 in registers, multiplied on the int8 matrix units.

The terms of an output pixel are one row of bytes, taps by words; eight planes of it, one bit per byte each, go through
`tl.dot`. An out-of-image byte is 0 in every plane where outside counts as 0. Bytes beyond the row hold zero bits on both
sides, and so do the channels that fill the last word: each such pair adds (-1) (-1) = 1, which is subtracted at the end.
"""

import triton
import triton.language as tl

from .backend import TritonBackend
from .epilogue import finish
from .geometry import pixel_of, source


@triton.constexpr_function
def _signs_asm(plane, mask):
    """Four bytes at once: bit b of each becomes -254 b - 1 in 32-bit arithmetic, and that is +1 or -1 in every byte."""
    signs = f'.reg .b32 t; shr.u32 t, $1, {plane}; and.b32 t, t, 0x01010101; mad.lo.s32 t, t, -254, -1;'
    return f'{{ {signs} {"and.b32 $0, t, $2;" if mask else "mov.b32 $0, t;"} }}'


@triton.jit
def signs(packed, PLANE: tl.constexpr, ASM: tl.constexpr):
    """Bit PLANE of each int8 as -1 or +1."""
    if ASM:
        return tl.inline_asm_elementwise(_signs_asm(PLANE, False), '=r,r', [packed], dtype=tl.int8, is_pure=True, pack=4)
    else:
        return (((packed >> PLANE) & 1) * 2 - 1).to(tl.int8)


@triton.jit
def kept_signs(packed, mask, PLANE: tl.constexpr, ASM: tl.constexpr):
    """`signs` where the int8 `mask` is -1, and 0 where it is 0."""
    if ASM:
        return tl.inline_asm_elementwise(_signs_asm(PLANE, True), '=r,r,r', [packed, mask], dtype=tl.int8, is_pure=True,
                                         pack=4)
    else:
        return signs(packed, PLANE, ASM) & mask


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def convolve(x, w, sums, words, out, shortcut, scale, bias, gamma, slope, zeta, threshold, flip,
             pixels, height, width, out_height, out_width,
             CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, KERNEL_H: tl.constexpr,
             KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr,
             PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PAD_VALUE: tl.constexpr,
             TRANSPOSED: tl.constexpr, REPLICAS: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, ASM: tl.constexpr):
    """BLOCK_M output pixels and BLOCK_N channels of one group; see `launch.convolve` for the arguments. K counts bytes."""
    BYTES: tl.constexpr = (CHANNELS + 31) // 32 * 4
    ROW: tl.constexpr = KERNEL_H * KERNEL_W * BYTES
    FILLING: tl.constexpr = BYTES * 8 - CHANNELS
    BEYOND: tl.constexpr = (ROW + BLOCK_K - 1) // BLOCK_K * BLOCK_K * 8 - ROW * 8
    # Without padding every tap of a convolution exists.
    MASKED: tl.constexpr = TRANSPOSED or (PAD_VALUE == 0 and PADDING_H + PADDING_W > 0)
    PER_GROUP: tl.constexpr = OUTPUTS // GROUPS
    tiles = tl.cdiv(PER_GROUP, BLOCK_N)
    tile = tl.program_id(0) % (GROUPS * tiles)
    group, start = tile // tiles, tile % tiles * BLOCK_N
    pixel = tl.program_id(0) // (GROUPS * tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    real_pixel = pixel < pixels
    image, row, column = pixel_of(pixel, out_height, out_width)
    lane = tl.arange(0, BLOCK_N)
    w_rows = w + (group * PER_GROUP + start + lane) * ROW
    real_channel = start + lane < PER_GROUP

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for first in range(0, ROW, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        tap, byte = k // BYTES, k % BYTES
        y, y_exists = source(row[:, None], (tap // KERNEL_W)[None, :], height, STRIDE_H, PADDING_H, DILATION_H, TRANSPOSED)
        z, z_exists = source(column[:, None], (tap % KERNEL_W)[None, :], width, STRIDE_W, PADDING_W, DILATION_W, TRANSPOSED)
        inside = y_exists & z_exists & (real_pixel[:, None] & (k < ROW)[None, :])
        place = ((image * height)[:, None] + y) * width + z
        place = tl.where(inside, place, 0).to(tl.int64) * (GROUPS * BYTES) + (group * BYTES + byte)[None, :]
        outside = 0
        if PAD_VALUE == 1:
            ones = tl.minimum(tl.maximum(CHANNELS - byte * 8, 0), 8)  # real channels of the byte
            outside = tl.where(k < ROW, (1 << ones) - 1, 0).to(tl.int8)[None, :]
        a = tl.load(x + place, mask=inside, other=outside)
        b = tl.load(w_rows[None, :] + k[:, None], mask=real_channel[None, :] & (k < ROW)[:, None], other=0)
        mask = tl.where(inside, -1, 0).to(tl.int8)  # in every bit
        for plane in tl.static_range(8):
            if MASKED:
                left = kept_signs(a, mask, plane, ASM)
            else:
                left = signs(a, plane, ASM)
            acc = tl.dot(left, signs(b, plane, ASM), acc, out_dtype=tl.int32)

    if not MASKED:
        acc -= KERNEL_H * KERNEL_W * FILLING + BEYOND
    elif FILLING > 0:
        rows_inside, columns_inside = tl.zeros_like(row), tl.zeros_like(column)
        for tap in tl.static_range(KERNEL_H):
            _, exists = source(row, tap, height, STRIDE_H, PADDING_H, DILATION_H, TRANSPOSED)
            rows_inside += exists.to(tl.int32)
        for tap in tl.static_range(KERNEL_W):
            _, exists = source(column, tap, width, STRIDE_W, PADDING_W, DILATION_W, TRANSPOSED)
            columns_inside += exists.to(tl.int32)
        acc -= (rows_inside * columns_inside * FILLING)[:, None]
    finish(acc, pixel, real_pixel, group * PER_GROUP + start, PER_GROUP - start, sums, words, out, shortcut, scale, bias,
           gamma, slope, zeta, threshold, flip, OUTPUTS, REPLICAS, ACT, ELEMENT, BLOCK_M, BLOCK_N)


class Bitplane(TritonBackend):
    name = 'triton-bitplane'
    kernel = convolve
    least_capability = (8, 0)
