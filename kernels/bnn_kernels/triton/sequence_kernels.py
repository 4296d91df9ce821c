"""Recurrent networks and attention in plain Triton: steps of an LSTM, a block of queries, normalized packing.

The arithmetic is that of `bnn_kernels.recurrence` and `bnn_kernels.attention`, compiled without contraction.
"""

import triton
import triton.language as tl

from .. import recurrence
from .bits import popcount
from .epilogue import decode, packed

ROUND = tl.constexpr(recurrence.ROUND)
LOG2_E, LN2_HIGH, LN2_LOW = (tl.constexpr(v) for v in (recurrence.LOG2_E, recurrence.LN2_HIGH, recurrence.LN2_LOW))
E5, E4, E3, E2, E1, E0 = (tl.constexpr(v) for v in recurrence.EXP)
A4, A3, A2, A1, A0 = (tl.constexpr(v) for v in recurrence.TANH_ABOVE)
B4, B3, B2, B1, B0 = (tl.constexpr(v) for v in recurrence.TANH_BELOW)
SIGMOID_LIMIT, TANH_LIMIT = tl.constexpr(recurrence.SIGMOID_LIMIT), tl.constexpr(recurrence.TANH_LIMIT)
CELL_LIMIT, RECIPROCAL = tl.constexpr(float(recurrence.CELL_LIMIT)), tl.constexpr(recurrence.RECIPROCAL)
BOOL, ELASTIC = tl.constexpr(0), tl.constexpr(2)  # places in attention.RULES


@triton.jit
def horner(x, C4: tl.constexpr, C3: tl.constexpr, C2: tl.constexpr, C1: tl.constexpr, C0: tl.constexpr):
    return (((x * C4 + C3) * x + C2) * x + C1) * x + C0


@triton.jit
def reciprocal(d):
    y = (-d.to(tl.int32, bitcast=True) + RECIPROCAL).to(tl.float32, bitcast=True)
    for _ in tl.static_range(3):
        y = y * (2.0 - d * y)
    return y


@triton.jit
def clamp(x, LIMIT: tl.constexpr):
    return tl.where(x < -LIMIT, -LIMIT, tl.where(x > LIMIT, LIMIT, x))


@triton.jit
def sigmoid(x):
    x = 0.0 - clamp(x, SIGMOID_LIMIT)
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = x - n * LN2_HIGH
    r = r - n * LN2_LOW
    bits = (horner(r, E5, E4, E3, E2, E1) * r + E0).to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
    return reciprocal(bits.to(tl.float32, bitcast=True) + 1.0)


@triton.jit
def tanh(x):
    x = clamp(x, TANH_LIMIT)
    square = x * x
    return x * horner(square, A4, A3, A2, A1, A0) * reciprocal(horner(square, B4, B3, B2, B1, B0))


@triton.jit
def differing(before_rows, w_rows, gate, runs, real_unit, WORDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Hidden bits that differ from the weights of the gates i, f, g, o, int32 [BLOCK_M, BLOCK_N] each. `gate`: its words."""
    UNROLL: tl.constexpr = 4 if WORDS % 4 == 0 else 2 if WORDS % 2 == 0 else 1
    i = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    f, g, o = i, i, i
    for first in range(0, WORDS, UNROLL):
        for offset in tl.static_range(UNROLL):
            word = first + offset
            bits = tl.load(before_rows + word, mask=runs, other=0)[:, None]
            i += popcount(bits ^ tl.load(w_rows + word, mask=real_unit, other=0)[None, :])
            f += popcount(bits ^ tl.load(w_rows + gate + word, mask=real_unit, other=0)[None, :])
            g += popcount(bits ^ tl.load(w_rows + 2 * gate + word, mask=real_unit, other=0)[None, :])
            o += popcount(bits ^ tl.load(w_rows + 3 * gate + word, mask=real_unit, other=0)[None, :])
    return i, f, g, o


@triton.jit
def pre_activation(zx, differ, scale, scale_x, bias, at, real_unit, UNITS: tl.constexpr):
    """z of one gate, whose vectors begin `at` the pointers."""
    zx = zx.to(tl.float32)
    if scale_x is not None:
        zx = zx * tl.load(scale_x + at, mask=real_unit, other=0)[None, :]
    if bias is not None:
        zx = zx + tl.load(bias + at, mask=real_unit, other=0)[None, :]
    return zx + (UNITS - 2 * differ).to(tl.float32) * tl.load(scale + at, mask=real_unit, other=0)[None, :]


@triton.jit(do_not_specialize=['first', 'count', 'steps', 'batch', 'directions'])
def lstm(x, w, scale, scale_x, bias, threshold, lengths, before, after, cell, h, words, first, count, steps, batch, directions,
         UNITS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, GATES: tl.constexpr, SIGN_CANDIDATE: tl.constexpr,
         CELL_READOUT: tl.constexpr, AND_FEEDBACK: tl.constexpr, INTEGER_CELL: tl.constexpr, BLOCK_M: tl.constexpr,
         BLOCK_N: tl.constexpr):
    """BLOCK_M sequences and BLOCK_N units of one direction, `count` steps from `first` on: more than one where BLOCK_N holds
    all units, for a step reads the bits of all.

    Args:
        x: int32 or float32 [steps, batch, directions, 4, INPUTS]. w: [directions, 4, OUTPUTS, words].
        scale, scale_x, bias: [directions, 4, UNITS]; threshold: [directions, UNITS]; lengths: [batch]; any but scale None.
        before, after: hidden bits [directions, batch, words], which change places at each step.
        cell: float32 [directions, batch, UNITS], in place.
        h: [steps, batch, directions, UNITS] or None. words: [steps, batch, directions, words] or None.
    """
    WORDS: tl.constexpr = (UNITS + 31) // 32
    tiles = tl.cdiv(UNITS, BLOCK_N)
    row_tiles = tl.cdiv(batch, BLOCK_M)
    tile = tl.program_id(0)
    direction = (tile // (row_tiles * tiles)).to(tl.int64)
    row = tile // tiles % row_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    start = tile % tiles * BLOCK_N
    unit = start + tl.arange(0, BLOCK_N)
    real_row, real_unit = row < batch, unit < UNITS
    real = real_row[:, None] & real_unit[None, :]
    word = start // 32 + tl.arange(0, BLOCK_N // 32)
    there = real_row[:, None] & (word < WORDS)[None, :]
    length = tl.zeros_like(row) + steps
    if lengths is not None:
        length = tl.minimum(tl.maximum(tl.load(lengths + row, mask=real_row, other=0), 0), steps).to(tl.int32)
    state = direction * batch + row
    cells = cell + state[:, None] * UNITS + unit[None, :]
    w_rows = w + (direction * (4 * OUTPUTS) + unit % OUTPUTS) * WORDS
    at = direction * (4 * UNITS) + unit
    level = tl.zeros_like(unit).to(tl.float32)
    if threshold is not None:
        level = tl.load(threshold + direction * UNITS + unit, mask=real_unit, other=0)

    c = tl.load(cells, mask=real, other=0)
    for step in range(first, first + count):
        runs = real_row & (step < length)
        run = runs[:, None] & real_unit[None, :]
        time = tl.where(runs & (direction == 1), length - 1 - step, step)
        place = (time.to(tl.int64) * batch + row) * directions + direction
        inputs = x + place[:, None] * (4 * INPUTS) + (unit % INPUTS)[None, :]
        x_i = tl.load(inputs, mask=run, other=0)  # on their way while bits are counted
        x_f = tl.load(inputs + INPUTS, mask=run, other=0)
        x_g = tl.load(inputs + 2 * INPUTS, mask=run, other=0)
        x_o = tl.load(inputs + 3 * INPUTS, mask=run, other=0)
        before_rows = before + state * WORDS
        i, f, g, o = differing(before_rows, w_rows, OUTPUTS * WORDS, runs, real_unit, WORDS, BLOCK_M, BLOCK_N)
        z_i = pre_activation(x_i, i, scale, scale_x, bias, at, real_unit, UNITS)
        z_f = pre_activation(x_f, f, scale, scale_x, bias, at + UNITS, real_unit, UNITS)
        z_g = pre_activation(x_g, g, scale, scale_x, bias, at + 2 * UNITS, real_unit, UNITS)
        z_o = pre_activation(x_o, o, scale, scale_x, bias, at + 3 * UNITS, real_unit, UNITS)
        i = sigmoid(z_i) if GATES == 'soft' else tl.where(z_i >= 0, 1.0, 0.0)
        f = sigmoid(z_f) if GATES == 'soft' else tl.where(z_f >= 0, 1.0, 0.0)
        g = tl.where(z_g >= 0, 1.0, -1.0) if SIGN_CANDIDATE else tanh(z_g)
        o = tl.where(z_o >= 0, 1.0, 0.0) if GATES == 'binary' else sigmoid(z_o)

        new = f * c + i * g
        if INTEGER_CELL:
            new = clamp(new, CELL_LIMIT)
        c = tl.where(run, new, c)
        value = o * c if CELL_READOUT else o * tanh(c)
        bits = (o == 1.0) & (c >= level[None, :]) if AND_FEEDBACK else value >= level[None, :]
        if h is not None:
            tl.store(h + place[:, None] * UNITS + unit[None, :], tl.where(run, value, 0.0), mask=real)
        made = packed(bits & run, BLOCK_M, BLOCK_N)
        if words is not None:
            tl.store(words + place[:, None] * WORDS + word[None, :], made, mask=there)
        old = tl.load(before_rows[:, None] + word[None, :], mask=there, other=0)
        tl.store(after + (state * WORDS)[:, None] + word[None, :], tl.where(runs[:, None], made, old), mask=there)
        tl.debug_barrier()  # other threads read these bits in the next step
        before, after = after, before
    tl.store(cells, c, mask=real)


@triton.jit
def distances(q_rows, k, real_query, key, keys, heads, WORDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Differing signs of queries and keys, int32 [BLOCK_M, BLOCK_N]; `k` points to the head of the first key."""
    differ = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for word in range(WORDS):
        q = tl.load(q_rows + word, mask=real_query, other=0)
        signs = tl.load(k + key.to(tl.int64) * (heads * WORDS) + word, mask=key < keys, other=0)
        differ += popcount(q[:, None] ^ signs[None, :])
    return differ


@triton.jit
def taking_part(mask_rows, real_query, first, key, keys, BLOCK_M: tl.constexpr):
    """Whether 32 keys from `first` on take part, bool [BLOCK_M, 32] or [1, 32]."""
    part = (key < keys)[None, :]
    if mask_rows is not None:
        word = tl.load(mask_rows + first // 32, mask=real_query, other=0)
        part = part & (((word[:, None] >> (key % 32)[None, :]) & 1) != 0)
    return part


@triton.jit
def lower_bound(level, least, total, table_row, RULE: tl.constexpr, FEATURES: tl.constexpr, ENTRIES: tl.constexpr):
    """Distances below it have their attention bit: base + n of `bnn_kernels.attention`, int32 [BLOCK_M]."""
    if RULE == ELASTIC:
        entry = tl.arange(0, ENTRIES)
        exponential = tl.load(table_row + entry, mask=entry <= FEATURES, other=0).to(tl.float64)
        over = (exponential[None, :] > (level * total.to(tl.float64))[:, None]) & (entry <= FEATURES)[None, :]
        return least + tl.sum(over.to(tl.int32), axis=1)
    else:
        reach = (FEATURES - level) / 2 if RULE == BOOL else level / 2
        reach = tl.where(reach >= FEATURES, FEATURES, tl.where(reach >= 0, reach, -1)).to(tl.int32) + 1
        return tl.zeros_like(least) + reach if RULE == BOOL else least + reach


@triton.jit(do_not_specialize=['queries', 'keys', 'mask_batch', 'mask_query'])
def attend(q, k, v, mask, limit, table, scale, y, queries, keys, heads, mask_batch, mask_query, table_heads,
           FEATURES: tl.constexpr, VALUES: tl.constexpr, PLANES: tl.constexpr, RULES: tl.constexpr, ENTRIES: tl.constexpr,
           BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    """BLOCK_M queries of one head and BLOCK_V of their values, 32 keys at a time.

    Args:
        q, k: [B, tokens, heads, words]. v: [B, heads, VALUES, key words]. limit: float64 [PLANES, heads].
        mask: words, a row per `mask_batch` and `mask_query` (steps in rows, 0 where they share one), or None.
        table: int32 [heads or 1, FEATURES + 1] or None. scale: float32 [PLANES, heads] or None.
        y: [B, queries, heads, VALUES], int32 or, with scale, float32.
        RULES: places in attention.RULES, two bits per plane. ENTRIES: a power of two above FEATURES.
    """
    WORDS: tl.constexpr = (FEATURES + 31) // 32
    tiles = tl.cdiv(VALUES, BLOCK_V)
    query_tiles = tl.cdiv(queries, BLOCK_M)
    tile = tl.program_id(0)
    head = tile // (tiles * query_tiles)
    batch, head = (head // heads).to(tl.int64), head % heads
    query = tile // tiles % query_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    value = tile % tiles * BLOCK_V + tl.arange(0, BLOCK_V)
    real_query = query < queries
    q_rows = q + ((batch * queries + query) * heads + head) * WORDS
    k_head = k + (batch * keys * heads + head) * WORDS
    key_words = tl.cdiv(keys, 32)
    v_rows = v + ((batch * heads + head) * VALUES + value) * key_words
    mask_rows = None if mask is None else mask + (batch * mask_batch + query * mask_query) * key_words
    lane = tl.arange(0, 32)

    least = tl.zeros((BLOCK_M,), tl.int32) + FEATURES
    total = tl.zeros((BLOCK_M,), tl.int64)
    table_row = None if table is None else table + head * table_heads * (FEATURES + 1)
    if RULES != 0:
        for first in range(0, keys, 32):
            key = first + lane
            m = distances(q_rows, k_head, real_query, key, keys, heads, WORDS, BLOCK_M, 32)
            part = taking_part(mask_rows, real_query, first, key, keys, BLOCK_M)
            least = tl.minimum(least, tl.min(tl.where(part, m, FEATURES), axis=1))
        if table is not None:
            for first in range(0, keys, 32):
                key = first + lane
                m = distances(q_rows, k_head, real_query, key, keys, heads, WORDS, BLOCK_M, 32) - least[:, None]
                part = taking_part(mask_rows, real_query, first, key, keys, BLOCK_M) & (m >= 0)
                total += tl.sum(tl.load(table_row + m, mask=part, other=0).to(tl.int64), axis=1)

    result = tl.zeros((BLOCK_M, BLOCK_V), tl.int32 if scale is None else tl.float32)
    for plane in tl.static_range(PLANES):
        level = tl.load(limit + plane * heads + head)
        below = lower_bound(level, least, total, table_row, (RULES >> (2 * plane)) & 3, FEATURES, ENTRIES)
        common = tl.zeros((BLOCK_M, BLOCK_V), tl.int32)
        ones = tl.zeros((BLOCK_M,), tl.int32)
        for first in range(0, keys, 32):
            key = first + lane
            m = distances(q_rows, k_head, real_query, key, keys, heads, WORDS, BLOCK_M, 32)
            bits = (m < below[:, None]) & taking_part(mask_rows, real_query, first, key, keys, BLOCK_M)
            a = tl.sum(bits.to(tl.int32) << lane[None, :], axis=1)
            signs = tl.load(v_rows + first // 32, mask=value < VALUES, other=0)
            common += popcount(a[:, None] & signs[None, :])
            ones += popcount(a)
        sums = 2 * common - ones[:, None]
        if scale is not None:
            term = sums.to(tl.float32) * tl.load(scale + plane * heads + head)
            result = term if plane == 0 else result + term
        else:
            result = sums
    place = ((batch * queries + query) * heads + head)[:, None] * VALUES + value[None, :]
    tl.store(y + place, result, mask=real_query[:, None] & (value < VALUES)[None, :])


@triton.jit(do_not_specialize=['rows'])
def pack_normalized(x, mean, std, threshold, flip, words, rows, CHANNELS: tl.constexpr, BLOCK_M: tl.constexpr,
                    BLOCK_N: tl.constexpr):
    """BLOCK_M rows and BLOCK_N bits of their words. x: [rows, CHANNELS]. flip: uint8 or None."""
    WORDS: tl.constexpr = (CHANNELS + 31) // 32
    tiles = tl.cdiv(WORDS * 32, BLOCK_N)
    start = tl.program_id(0) % tiles * BLOCK_N
    row = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = start + tl.arange(0, BLOCK_N)
    real_row, real = row < rows, channel < CHANNELS
    value = decode(tl.load(x + row.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=real_row[:, None] & real[None, :],
                           other=0))
    level = tl.load(std + row, mask=real_row, other=0)[:, None] * tl.load(threshold + channel, mask=real, other=0)[None, :]
    level = tl.load(mean + row, mask=real_row, other=0)[:, None] + level
    bits = value >= level
    if flip is not None:
        bits = tl.where((tl.load(flip + channel, mask=real, other=0) != 0)[None, :], value <= level, bits)
    word = start // 32 + tl.arange(0, BLOCK_N // 32)
    tl.store(words + row.to(tl.int64)[:, None] * WORDS + word[None, :], packed(bits & real[None, :], BLOCK_M, BLOCK_N),
             mask=real_row[:, None] & (word < WORDS)[None, :])
