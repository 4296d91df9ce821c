"""Floats to words: the sign of every value against its channel's threshold, in one pass over any dense memory format."""

import triton
import triton.language as tl

from .epilogue import decode, packed


@triton.jit
def widen(value):
    """To float32, exactly; float64 stays, and a comparison with it is made in float64."""
    if value.dtype == tl.float64:
        return value
    else:
        return decode(value)


@triton.jit(do_not_specialize=['pixels'])
def pack_signs(x, threshold, words, pixels, image_stride, pixel_stride, channel_stride,
               CHANNELS: tl.constexpr, GROUPS: tl.constexpr, THRESHOLDS: tl.constexpr, BLOCK_M: tl.constexpr,
               BLOCK_N: tl.constexpr):
    """BLOCK_M pixels of one image and BLOCK_N bits of their words.

    Args:
        x: CHANNELS values for each of `pixels` pixels of an image, apart by the strides, in elements.
        threshold: THRESHOLDS of them, one or one per channel, or None.
        words: int32 [images * pixels, GROUPS * words].
    """
    PER_GROUP: tl.constexpr = CHANNELS // GROUPS
    WORDS: tl.constexpr = (PER_GROUP + 31) // 32
    tiles = tl.cdiv(GROUPS * WORDS * 32, BLOCK_N)
    start = tl.program_id(0) % tiles * BLOCK_N
    tiles_of_image = tl.cdiv(pixels, BLOCK_M)
    tile = tl.program_id(0) // tiles
    image = (tile // tiles_of_image).to(tl.int64)
    pixel = tile % tiles_of_image * BLOCK_M + tl.arange(0, BLOCK_M)
    place = start + tl.arange(0, BLOCK_N)  # of a bit in the words of a pixel
    group, within = place // (WORDS * 32), place % (WORDS * 32)
    channel = group * PER_GROUP + within
    real = (within < PER_GROUP) & (group < GROUPS)
    inside = (pixel < pixels)[:, None] & real[None, :]
    x_image = x + image * image_stride + (pixel.to(tl.int64) * pixel_stride)[:, None]
    value = widen(tl.load(x_image + (channel.to(tl.int64) * channel_stride)[None, :], mask=inside, other=0))
    if threshold is None:
        bits = value >= 0
    elif THRESHOLDS == 1:
        bits = value >= widen(tl.load(threshold))
    else:
        bits = value >= widen(tl.load(threshold + channel, mask=real, other=0))[None, :]
    word = start // 32 + tl.arange(0, BLOCK_N // 32)
    tl.store(words + (image * pixels + pixel)[:, None] * (GROUPS * WORDS) + word[None, :],
             packed(bits & real[None, :], BLOCK_M, BLOCK_N),
             mask=(pixel < pixels)[:, None] & (word < GROUPS * WORDS)[None, :])
