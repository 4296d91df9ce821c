"""Backend `triton-popcount`: XOR and popcount of words on the ordinary integer units, an implicit matrix product.

    dot = terms - 2 popcount(x ^ w)

over the taps inside the image where outside counts as 0. Runs on every GPU that Triton has, and in its interpreter.
"""

import triton
import triton.language as tl

from .backend import TritonBackend
from .bits import popcount
from .epilogue import finish
from .geometry import pixel_of, source


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def convolve(x, w, sums, words, out, shortcut, scale, bias, gamma, slope, zeta, threshold, flip,
             pixels, height, width, out_height, out_width,
             CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, KERNEL_H: tl.constexpr,
             KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr,
             PADDING_W: tl.constexpr, DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PAD_VALUE: tl.constexpr,
             TRANSPOSED: tl.constexpr, REPLICAS: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr,
             BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """BLOCK_M output pixels and BLOCK_N channels of one group; see `launch.convolve` for the arguments."""
    WORDS: tl.constexpr = (CHANNELS + 31) // 32
    LAST_WORD: tl.constexpr = -1 if CHANNELS % 32 == 0 else (1 << CHANNELS % 32) - 1  # ones in the real channels
    UNROLL: tl.constexpr = 4 if WORDS % 4 == 0 else 2 if WORDS % 2 == 0 else 1
    PER_GROUP: tl.constexpr = OUTPUTS // GROUPS
    TAPS: tl.constexpr = KERNEL_H * KERNEL_W
    tiles = tl.cdiv(PER_GROUP, BLOCK_N)
    tile = tl.program_id(0) % (GROUPS * tiles)
    group, start = tile // tiles, tile % tiles * BLOCK_N
    pixel = tl.program_id(0) // (GROUPS * tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    real_pixel = pixel < pixels
    image, row, column = pixel_of(pixel, out_height, out_width)
    lane = tl.arange(0, BLOCK_N)
    channel = tl.minimum(start + lane, PER_GROUP - 1)  # beyond the last one: read it again, store nothing
    w_rows = w + (group * PER_GROUP + channel) * (TAPS * WORDS)

    differ = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    taps_inside = tl.zeros((BLOCK_M,), tl.int32)
    for tap in range(TAPS):
        y, y_exists = source(row, tap // KERNEL_W, height, STRIDE_H, PADDING_H, DILATION_H, TRANSPOSED)
        z, z_exists = source(column, tap % KERNEL_W, width, STRIDE_W, PADDING_W, DILATION_W, TRANSPOSED)
        inside = real_pixel & y_exists & z_exists
        taps_inside += inside.to(tl.int32)
        x_rows = x + tl.where(inside, (image * height + y) * width + z, 0).to(tl.int64) * (GROUPS * WORDS) + group * WORDS
        for first in range(0, WORDS, UNROLL):
            for offset in tl.static_range(UNROLL):
                word = first + offset
                a = tl.load(x_rows + word)
                if PAD_VALUE == 1:
                    a = tl.where(inside, a, tl.where(word == WORDS - 1, LAST_WORD, -1))
                elif PAD_VALUE == -1:
                    a = tl.where(inside, a, 0)
                bits = a[:, None] ^ tl.load(w_rows + tap * WORDS + word)[None, :]
                if PAD_VALUE == 0:
                    bits &= tl.where(inside, -1, 0)[:, None]
                differ += popcount(bits)

    if PAD_VALUE == 0:
        acc = (taps_inside * CHANNELS)[:, None] - 2 * differ
    else:
        acc = TAPS * CHANNELS - 2 * differ
    finish(acc, pixel, real_pixel, group * PER_GROUP + start, PER_GROUP - start, sums, words, out, shortcut, scale, bias,
           gamma, slope, zeta, threshold, flip, OUTPUTS, REPLICAS, ACT, ELEMENT, BLOCK_M, BLOCK_N)


class Popcount(TritonBackend):
    name = 'triton-popcount'
    kernel = convolve
    least_capability = (7, 5)
