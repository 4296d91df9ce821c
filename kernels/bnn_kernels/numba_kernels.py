"""The loops of the numba backend: popcounts over packed words, compiled at the first call and kept on disk.

A convolution comes as `conv`: its geometry, height and width of the padded image, those of the output, the uint32 words of the
padded images, flat, the weights `[groups, taps * words, O / groups]`, and their `tap_sums`. Outputs are counted in pixels,
`pixel = (image * H' + row) * W' + column`, and four of them share each load of the weights.
Zero padding is exact: the loops run over zero bits outside the image and then take out what these taps added. Floats are
rounded operation by operation: without fastmath LLVM neither reorders nor contracts.

Loops over channels index with the loop's own variable alone: an offset might be negative to LLVM, and it would not vectorize.
"""

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from .epilogue import LEAST, LOG2_E, LOG_2, MOST, POLYNOMIAL, STEPS_OF_ONE

IDENTITY, PRELU, RELU, HARDTANH, SILU = range(5)
BLOCK = 4  # pixels that share the weights
SILU_LEAST, SILU_MOST, SILU_LOG2_E, SILU_STEPS = map(np.float32, (LEAST, MOST, LOG2_E, STEPS_OF_ONE))
SILU_HIGH, SILU_LOW = map(np.float32, LOG_2)
SILU_FACTORS = np.array(POLYNOMIAL, np.float32)
compiled = njit(cache=True, nogil=True, error_model='numpy')


@intrinsic
def popcount(context, word):
    def emit(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint32(types.uint32), emit


@compiled
def tap_sums(weights, words, channels):
    """What each tap adds to an output over zero bits: uint32 `[groups, taps * words, O / groups]` -> int32 `[taps, O]`."""
    groups, terms, outputs = weights.shape
    sums = np.full((terms // words, groups * outputs), channels, np.int32)
    for group in range(groups):
        for term in range(terms):
            for j in range(outputs):
                sums[term // words, group * outputs + j] -= np.int32(2) * np.int32(popcount(weights[group, term, j]))
    return sums


@compiled
def _differences(x, bases, offsets, weights, words, counts):
    """Differing bits of four pixels.

    x: uint32 words of the padded images, flat. bases: where the pixels start in x. offsets: of every word of the kernel.
    weights: uint32 `[groups, taps * words, O / groups]`. counts: uint32 `[4, groups, O / groups]`, the result.
    """
    groups, terms, outputs = weights.shape
    counts[:] = 0
    for group in range(groups):
        p0, p1, p2, p3 = bases[0] + group * words, bases[1] + group * words, bases[2] + group * words, bases[3] + group * words
        for term in range(0, terms - 2, 3):  # three words at a time: fewer passes over the counts
            a, b, c = offsets[term], offsets[term + 1], offsets[term + 2]
            x0a, x0b, x0c, x1a, x1b, x1c = x[p0 + a], x[p0 + b], x[p0 + c], x[p1 + a], x[p1 + b], x[p1 + c]
            x2a, x2b, x2c, x3a, x3b, x3c = x[p2 + a], x[p2 + b], x[p2 + c], x[p3 + a], x[p3 + b], x[p3 + c]
            for j in range(outputs):
                wa, wb, wc = weights[group, term, j], weights[group, term + 1, j], weights[group, term + 2, j]
                counts[0, group, j] += popcount(x0a ^ wa) + popcount(x0b ^ wb) + popcount(x0c ^ wc)
                counts[1, group, j] += popcount(x1a ^ wa) + popcount(x1b ^ wb) + popcount(x1c ^ wc)
                counts[2, group, j] += popcount(x2a ^ wa) + popcount(x2b ^ wb) + popcount(x2c ^ wc)
                counts[3, group, j] += popcount(x3a ^ wa) + popcount(x3b ^ wb) + popcount(x3c ^ wc)
        for term in range(terms - terms % 3, terms):
            a = offsets[term]
            x0a, x1a, x2a, x3a = x[p0 + a], x[p1 + a], x[p2 + a], x[p3 + a]
            for j in range(outputs):
                wa = weights[group, term, j]
                counts[0, group, j] += popcount(x0a ^ wa)
                counts[1, group, j] += popcount(x1a ^ wa)
                counts[2, group, j] += popcount(x2a ^ wa)
                counts[3, group, j] += popcount(x3a ^ wa)


@compiled
def _offsets(conv):
    """Where the words of the kernel lie behind the first word of a pixel."""
    geometry, (_, width), _, _, weights, _ = conv
    groups, terms, _ = weights.shape
    words = terms // (geometry.kernel[0] * geometry.kernel[1])
    offsets = np.empty(terms, np.int64)
    for term in range(terms):
        i, j = divmod(term // words, geometry.kernel[1])
        place = i * geometry.dilation[0] * width + j * geometry.dilation[1]
        offsets[term] = place * groups * words + term % words
    return offsets


@compiled
def _sums(conv, offsets, first, last, bases, counts, sums):
    """Integer results of the pixels `first`, ... of a block, int32 `[4, P]`; past `last` the last one is repeated."""
    geometry, (height, width), (out_height, out_width), x, weights, taps = conv
    words = weights.shape[1] // len(taps)
    stride_height, stride_width = geometry.stride
    for i in range(BLOCK):
        row, column = divmod(min(first + i, last - 1), out_width)
        image, row = divmod(row, out_height)
        place = (image * height + row * stride_height) * width + column * stride_width
        bases[i] = place * weights.shape[0] * words
    _differences(x, bases, offsets, weights, words, counts)
    terms = np.int32(len(taps) * (geometry.channels // geometry.groups))
    flat, outputs = counts.reshape(BLOCK, -1), taps.shape[1]
    pad_height, pad_width = geometry.padding
    for i in range(BLOCK):
        for j in range(outputs):
            sums[i, j] = terms - 2 * np.int32(flat[i, j])
        if geometry.pad_value == 0 and pad_height + pad_width > 0:  # taps in the padding do not count
            row, column = divmod(min(first + i, last - 1), out_width)
            row = row % out_height * stride_height
            column *= stride_width
            for tap in range(len(taps)):
                y = row + tap // geometry.kernel[1] * geometry.dilation[0]
                z = column + tap % geometry.kernel[1] * geometry.dilation[1]
                if not (pad_height <= y < height - pad_height and pad_width <= z < width - pad_width):
                    for j in range(outputs):
                        sums[i, j] -= taps[tap, j]
        for j in range(outputs, sums.shape[1]):  # replicas
            sums[i, j] = sums[i, j - outputs]


@compiled
def _buffers(conv, channels):
    """Starts of the pixels of a block, counts `[4, groups, O / groups]` and sums `[4, P]`."""
    groups, _, outputs = conv[4].shape
    return np.empty(BLOCK, np.int64), np.empty((BLOCK, groups, outputs), np.uint32), np.empty((BLOCK, channels), np.int32)


@compiled
def convolve(first, last, conv, out):
    """Pixels `first` to `last` of a convolution: int32 `out` [pixels, O]."""
    offsets = _offsets(conv)
    bases, counts, sums = _buffers(conv, out.shape[1])
    for start in range(first, last, BLOCK):
        _sums(conv, offsets, start, last, bases, counts, sums)
        for i in range(min(BLOCK, last - start)):
            for j in range(out.shape[1]):
                out[start + i, j] = sums[i, j]


@compiled
def convolve_block(first, last, conv, scale, bias, shortcut, act, gamma, slope, zeta, stream):
    """Convolution and float epilogue: float32 `stream` [pixels, P], which holds the shortcut before where there is one."""
    offsets = _offsets(conv)
    bases, counts, sums = _buffers(conv, stream.shape[1])
    for start in range(first, last, BLOCK):
        _sums(conv, offsets, start, last, bases, counts, sums)
        for i in range(min(BLOCK, last - start)):
            _affine(sums, i, scale, bias, shortcut, stream, start + i)
            _activate(act, gamma, slope, zeta, stream, start + i)


@compiled
def _affine(sums, i, scale, bias, shortcut, stream, pixel):
    if shortcut:
        for j in range(len(scale)):
            stream[pixel, j] = np.float32(sums[i, j]) * scale[j] + bias[j] + stream[pixel, j]
    else:
        for j in range(len(scale)):
            stream[pixel, j] = np.float32(sums[i, j]) * scale[j] + bias[j]


@compiled
def _activate(act, gamma, slope, zeta, stream, pixel):
    zero, one = np.float32(0), np.float32(1)
    if act == PRELU:
        for j in range(len(slope)):
            value = stream[pixel, j] - gamma[j]
            scaled = slope[j] * value
            stream[pixel, j] = (value if value > zero else scaled) + zeta[j]
    elif act == RELU:
        for j in range(len(slope)):
            value = stream[pixel, j]
            stream[pixel, j] = zero if value < zero else value
    elif act == HARDTANH:
        for j in range(len(slope)):
            value = stream[pixel, j]
            value = -one if value < -one else value
            stream[pixel, j] = one if value > one else value
    elif act == SILU:
        _silu(stream[pixel])


@compiled
def _silu(row):
    """As in epilogue.py, in place."""
    steps, power = np.empty_like(row), np.empty_like(row)
    for j in range(len(row)):
        x = np.float32(0) - row[j]
        x = SILU_LEAST if x < SILU_LEAST else x
        x = SILU_MOST if x > SILU_MOST else x
        steps[j] = x * SILU_LOG2_E + SILU_STEPS
        whole = steps[j] - SILU_STEPS
        rest = x - whole * SILU_HIGH
        rest = rest - whole * SILU_LOW
        y = SILU_FACTORS[0]
        for factor in SILU_FACTORS[1:]:
            y = y * rest + factor
        power[j] = y * (rest * rest) + rest + np.float32(1)
    exponents, bits = steps.view(np.int32), power.view(np.int32)
    for j in range(len(row)):
        bits[j] += exponents[j] << 23
    for j in range(len(row)):
        row[j] = row[j] / (np.float32(1) + power[j])


@compiled
def convolve_sign(first, last, conv, threshold, flip, groups, out):
    """Convolution and integer threshold, packed for `groups`: uint32 `out` [pixels, words]."""
    offsets = _offsets(conv)
    bases, counts, sums = _buffers(conv, len(threshold))
    bits, lanes, grouped, bytes8 = _lanes(len(threshold), groups, out.shape[1])
    for start in range(first, last, BLOCK):
        _sums(conv, offsets, start, last, bases, counts, sums)
        for i in range(min(BLOCK, last - start)):
            for j in range(len(bits)):
                bits[j] = (sums[i, j] >= threshold[j]) ^ flip[j]
            _pack_row(grouped, lanes, bytes8, out, start + i)


@compiled
def pack(first, last, x, threshold, groups, out):
    """Bits of `x >= threshold`, rows `first` to `last`: float `x` [rows, C] -> uint32 `out` [rows, words]."""
    bits, lanes, grouped, bytes8 = _lanes(x.shape[1], groups, out.shape[1])
    for row in range(first, last):
        for j in range(len(bits)):
            bits[j] = x[row, j] >= threshold[j]
        _pack_row(grouped, lanes, bytes8, out, row)


@compiled
def _lanes(channels, groups, words):
    """Bytes for the bits of one row: `[C]`, and `[groups, 32 * words]`, zero in the filling of each group. Then other views of
    them: `[groups, C / groups]`, and eight bytes at a time.
    """
    bits, lanes = np.empty(channels, np.uint8), np.zeros((groups, 32 * words // groups), np.uint8)
    return bits, lanes, bits.reshape(groups, -1), lanes.reshape(-1).view(np.uint64)


@compiled
def _pack_row(grouped, lanes, bytes8, out, row):
    for group in range(len(grouped)):
        for j in range(grouped.shape[1]):
            lanes[group, j] = grouped[group, j]
    gather = np.uint64(0x0102040810204080)  # times it: the lowest bits of eight bytes, in order, in the highest byte
    for word in range(out.shape[1]):
        packed = np.uint64(0)
        for i in range(4):
            packed |= (bytes8[4 * word + i] * gather >> np.uint64(56)) << np.uint64(8 * i)
        out[row, word] = np.uint32(packed)
