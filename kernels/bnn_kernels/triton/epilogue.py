"""What follows the accumulators of a tile, the same for every Triton kernel: int32 sums, or integer thresholds, or the float
epilogue of `bnn_kernels.epilogue`; then the signs, packed into words, and the stream, as it is or in eight bits.

A tile is `acc`, int32 [M, N]: M output pixels and N neighbouring accumulators. Kernels compile with enable_fp_fusion=False: a
multiplication and the addition behind it are rounded one by one, as the contract asks.

A pointer to int16 stands for the bits of bfloat16: the Triton interpreter cuts where hardware rounds.
"""

import triton
import triton.language as tl

from .geometry import pixel_of


@triton.jit
def decode(value):
    """An element of a stream to float32, exactly."""
    if value.dtype == tl.int16:
        return (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return value.to(tl.float32)


@triton.jit
def encode(v, ELEMENT: tl.constexpr):
    """Float32 to an element of a stream, rounded to nearest even."""
    if tl.int16 == ELEMENT:
        bits = v.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(v == v, bits, 0x7FC0).to(tl.int16)
    else:
        return v.to(ELEMENT)


@triton.jit
def eight_bits(v, inverse, zero, ELEMENT: tl.constexpr):
    """Float32 to uint8 or int8: the last line of `bnn_kernels.int8_reference`, for pointers to 1 / scale and zero point."""
    zero_point = tl.load(zero).to(tl.int32)
    v = v * tl.load(inverse)
    low, high = (-128 if tl.int8 == ELEMENT else 0) - zero_point, (127 if tl.int8 == ELEMENT else 255) - zero_point
    v = tl.where(v > low.to(tl.float32), v, low.to(tl.float32))
    v = tl.where(v < high.to(tl.float32), v, high.to(tl.float32))
    # 3 * 2**22 has steps of 1, and so has what is added to it: the sum rounds halves to even, and its bits count.
    steps = (v + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    return (steps + zero_point).to(ELEMENT)


@triton.jit
def silu(v):
    """As in `bnn_kernels.epilogue`."""
    x = 0.0 - v
    x = tl.where(x < -87.0, -87.0, tl.where(x > 88.0, 88.0, x))
    steps = x * 1.44269504088896341 + 12582912.0
    whole = steps - 12582912.0
    rest = x - whole * 0.693359375
    rest = rest - whole * -2.12194440e-4
    power = 1.9875691500e-4 * rest + 1.3981999507e-3
    power = power * rest + 8.3334519073e-3
    power = power * rest + 4.1665795894e-2
    power = power * rest + 1.6666665459e-1
    power = power * rest + 5.0000001201e-1
    power = power * (rest * rest) + rest + 1.0
    power = (power.to(tl.int32, bitcast=True) + (steps.to(tl.int32, bitcast=True) << 23)).to(tl.float32, bitcast=True)
    return tl.div_rn(v, 1.0 + power)


@triton.jit
def float_bits(acc, pixel, real_pixel, channel, real_channel, scale, bias, shortcut, gamma, slope, zeta, threshold, out,
               out_inverse, out_zero, CHANNELS: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr):
    """The float epilogue of one tile: stores the stream in `out` where there is one and returns the bits, bool [M, N].

    `pixel` [M] and `channel` [N] are places in `out` and the shortcut, [pixels, CHANNELS] in memory. The stream comes in eight
    bits where `out_inverse` is no None.
    """
    real = real_pixel[:, None] & real_channel[None, :]
    place = pixel.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
    v = acc.to(tl.float32) * _row(scale, channel, real_channel)
    v = v + _row(bias, channel, real_channel)
    if shortcut is not None:
        v = v + decode(tl.load(shortcut + place, mask=real, other=0))
    if ACT == 'prelu':
        if gamma is not None:
            v = v - _row(gamma, channel, real_channel)
        v = tl.where(v > 0, v, _row(slope, channel, real_channel) * v)
        if zeta is not None:
            v = v + _row(zeta, channel, real_channel)
    elif ACT == 'relu':
        v = tl.where(v < 0, 0.0, v)  # NaN stays NaN, as in hardtanh
    elif ACT == 'hardtanh':
        v = tl.where(v < -1, -1.0, tl.where(v > 1, 1.0, v))
    elif ACT == 'silu':
        v = silu(v)
    if out_inverse is not None:
        element = eight_bits(v, out_inverse, out_zero, ELEMENT)
    else:
        element = encode(v, ELEMENT)
        v = decode(element)
    if out is not None:
        tl.store(out + place, element, mask=real)
    level = 0.0
    if threshold is not None:
        level = _row(threshold, channel, real_channel)
    return (v >= level) & real_channel[None, :]


@triton.jit
def sign_bits(acc, channel, real_channel, threshold, flip):
    """The integer epilogue of one tile: bool [M, N]. `flip` points to uint8, or is None."""
    bits = acc >= _row(threshold, channel, real_channel)
    if flip is not None:
        bits = bits != (_row(flip, channel, real_channel) != 0)
    return bits & real_channel[None, :]


@triton.jit
def packed(bits, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Bool [M, N] to int32 words [M, N / 32], least significant bit first."""
    lanes = tl.reshape(bits.to(tl.int32), (BLOCK_M, BLOCK_N // 32, 32))
    return tl.sum(lanes << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit
def finish(acc, pixel, real_pixel, first, count, sums, words, out, shortcut, scale, bias, gamma, slope, zeta, threshold,
           flip, OUTPUTS: tl.constexpr, REPLICAS: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr,
           BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, out_inverse=None, out_zero=None):
    """Everything behind the accumulators `first` ... `first + count` of OUTPUTS; see `launch.Results` for the pointers.

    Words are whole: `first`, and OUTPUTS where there are replicas, are multiples of 32 (`launch.words_fit`).
    """
    lane = tl.arange(0, BLOCK_N)
    if sums is not None:
        place = pixel.to(tl.int64)[:, None] * OUTPUTS + (first + lane)[None, :]
        tl.store(sums + place, acc, mask=real_pixel[:, None] & (lane < count)[None, :])
    else:
        for replica in range(REPLICAS):
            start = replica * OUTPUTS + first
            if scale is not None:
                bits = float_bits(acc, pixel, real_pixel, start + lane, lane < count, scale, bias, shortcut, gamma, slope,
                                  zeta, threshold, out, out_inverse, out_zero, REPLICAS * OUTPUTS, ACT, ELEMENT)
            else:
                bits = sign_bits(acc, start + lane, lane < count, threshold, flip)
            if words is not None:
                word = tl.arange(0, BLOCK_N // 32)
                place = pixel.to(tl.int64)[:, None] * ((REPLICAS * OUTPUTS + 31) // 32) + (start // 32 + word)[None, :]
                tl.store(words + place, packed(bits, BLOCK_M, BLOCK_N),
                         mask=real_pixel[:, None] & (word * 32 < count)[None, :])


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def finish_apart(out_inverse, out_zero, sums, words, out, shortcut, scale, bias, gamma, slope, zeta, threshold, flip, pixels,
                 height, width, out_height, out_width, OUTPUTS: tl.constexpr, REPLICAS: tl.constexpr,
                 OUT_GROUPS: tl.constexpr, WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, STRIDE_H: tl.constexpr,
                 STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr, ACT: tl.constexpr,
                 ELEMENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """`finish` from the largest of stored sums, BLOCK_M pixels behind a pooling and BLOCK_N bits of their words.

    Also for channels whose words do not lie in one tile of a convolution: the windows are then 1 x 1.

    Args:
        sums: int32 or float32 [images, height, width, OUTPUTS]; what is outside does not count.
    """
    PER_GROUP: tl.constexpr = REPLICAS * OUTPUTS // OUT_GROUPS
    WORDS: tl.constexpr = (PER_GROUP + 31) // 32
    LEAST: tl.constexpr = -2**31 if sums.dtype.element_ty == tl.int32 else float('-inf')
    tiles = tl.cdiv(OUT_GROUPS * WORDS * 32, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tl.program_id(0) % tiles * BLOCK_N
    place = start + tl.arange(0, BLOCK_N)  # of a bit in the words of a pixel
    group, within = place // (WORDS * 32), place % (WORDS * 32)
    channel = group * PER_GROUP + within
    real_channel = (within < PER_GROUP) & (group < OUT_GROUPS)
    real_pixel = pixel < pixels
    image, row, column = pixel_of(pixel, out_height, out_width)
    acc = tl.full((BLOCK_M, BLOCK_N), LEAST, sums.dtype.element_ty)
    for tap in range(WINDOW_H * WINDOW_W):
        y, x = row * STRIDE_H - PADDING_H + tap // WINDOW_W, column * STRIDE_W - PADDING_W + tap % WINDOW_W
        inside = real_pixel & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        source = (image.to(tl.int64) * height + y) * width + x
        value = tl.load(sums + source[:, None] * OUTPUTS + (channel % OUTPUTS)[None, :],
                        mask=inside[:, None] & real_channel[None, :], other=LEAST)
        acc = tl.maximum(acc, value, propagate_nan=tl.PropagateNan.ALL)
    if scale is not None:
        bits = float_bits(acc, pixel, real_pixel, channel, real_channel, scale, bias, shortcut, gamma, slope, zeta, threshold,
                          out, out_inverse, out_zero, REPLICAS * OUTPUTS, ACT, ELEMENT)
    else:
        bits = sign_bits(acc, channel, real_channel, threshold, flip)
    if words is not None:
        word = start // 32 + tl.arange(0, BLOCK_N // 32)
        tl.store(words + pixel.to(tl.int64)[:, None] * (OUT_GROUPS * WORDS) + word[None, :], packed(bits, BLOCK_M, BLOCK_N),
                 mask=real_pixel[:, None] & (word < OUT_GROUPS * WORDS)[None, :])


@triton.jit
def _row(vector, channel, real_channel):
    return tl.load(vector + channel, mask=real_channel, other=0)[None, :]
