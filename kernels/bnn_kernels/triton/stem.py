"""What follows the real convolution of a stem, which is torch's: pooling, epilogue and signs in one pass over its sums."""

import triton
import triton.language as tl

from .epilogue import float_bits, packed
from .geometry import pixel_of


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def finish_stem(sums, words, out, scale, bias, gamma, slope, zeta, threshold, pixels, height, width, out_height, out_width,
                OUTPUTS: tl.constexpr, REPLICAS: tl.constexpr, OUT_GROUPS: tl.constexpr, WINDOW_H: tl.constexpr,
                WINDOW_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr,
                PADDING_W: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_N: tl.constexpr):
    """BLOCK_M pixels behind the pooling and BLOCK_N bits of their words.

    Args:
        sums: float32 [images, height, width, OUTPUTS]; what is outside does not count.
        words: [pixels, OUT_GROUPS * words], or None. out: [pixels, REPLICAS * OUTPUTS].
    """
    PER_GROUP: tl.constexpr = REPLICAS * OUTPUTS // OUT_GROUPS
    WORDS: tl.constexpr = (PER_GROUP + 31) // 32
    tiles = tl.cdiv(OUT_GROUPS * WORDS * 32, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.program_id(0) % tiles * BLOCK_N
    place = start + tl.arange(0, BLOCK_N)  # of a bit in the words of a pixel
    group, within = place // (WORDS * 32), place % (WORDS * 32)
    channel = group * PER_GROUP + within
    real_channel = (within < PER_GROUP) & (group < OUT_GROUPS)
    real_pixel = pixel < pixels
    image, row, column = pixel_of(pixel, out_height, out_width)
    v = tl.full((BLOCK_M, BLOCK_N), float('-inf'), tl.float32)
    for tap in range(WINDOW_H * WINDOW_W):
        y, x = row * STRIDE_H - PADDING_H + tap // WINDOW_W, column * STRIDE_W - PADDING_W + tap % WINDOW_W
        inside = real_pixel & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = (image.to(tl.int64) * height + y) * width + x
        value = tl.load(sums + source[:, None] * OUTPUTS + (channel % OUTPUTS)[None, :],
                        mask=inside[:, None] & real_channel[None, :], other=float('-inf'))
        v = tl.maximum(v, value, propagate_nan=tl.PropagateNan.ALL)
    bits = float_bits(v, pixel, real_pixel, channel, real_channel, scale, bias, None, gamma, slope, zeta, threshold, out,
                      REPLICAS * OUTPUTS, ACT, ELEMENT)
    if words is not None:
        word = start // 32 + tl.arange(0, BLOCK_N // 32)
        tl.store(words + pixel.to(tl.int64)[:, None] * (OUT_GROUPS * WORDS) + word[None, :], packed(bits, BLOCK_M, BLOCK_N),
                 mask=real_pixel[:, None] & (word < OUT_GROUPS * WORDS)[None, :])
