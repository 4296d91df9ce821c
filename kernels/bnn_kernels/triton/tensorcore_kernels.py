"""The fused 1-bit convolution on tensor cores, in Gluon: one persistent kernel for `mma.sync` and one for `wgmma`.

Both are implicit matrix products D[pixel, channel] = popcount(x & w), or of x ^ w, over k-steps of eight words (256 bits). An
operand of a 1-bit MMA is, byte by byte, an operand of the int8 MMA of 32 bytes, so the layouts of int8 serve as they are.

* A block keeps the weights of BLOCK_N channels in shared memory and walks over tiles of BLOCK_M pixels.
* Activations go from global memory straight into the registers of the MMA operand. The order of the words along K is free as
  long as both operands agree: thread t of four takes 2 * STEPS neighbouring words of STEPS k-steps, one wide load.
* A tap outside the image, and a word behind the last tap, is not loaded: its bits are 0. What is wrong with 0 there depends on
  the channel and on which borders the window crosses; it is in the table (`tensorcore_tables`), one row per class.
* Rows of the weight are permuted (`tensorcore_tables`) so that a thread's accumulators are BLOCK / 4 neighbouring channels of
  every BLOCK = min(BLOCK_N, 64): wide loads and stores, and words packed without talking to other threads.

With the AND form 4 D - 2 SA (+ table), SA is the popcount of the window; the XOR form -2 D (+ table) does without, and so does
XNOR by two ANDs, 2 D (+ table), whose counts start from the table so that signs are all that is left.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait

from .versions import gluon_async_load, gluon_barrier

barrier = gluon_barrier()
async_load = gluon_async_load()

MARKER = gl.constexpr('bnn_b1_required;')  # see tensorcore_rewrite
MAGIC = gl.constexpr(12582912.0)  # 1.5 * 2**23: the float whose bits are 0x4B400000; adding n < 2**22 to the bits adds n to it
WAIT_STEPS = gl.constexpr(16)  # k-steps of wgmma in flight: each keeps four registers of activations alive

# Sizes of the image are no part of a compiled kernel, not even where they are 1 or a multiple of 16.
RUNTIME = ['pixels', 'tiles', 'height', 'width', 'out_width', 'out_pixels', 'image_multiplier', 'image_shift',
           'row_multiplier', 'row_shift']


@gluon.constexpr_function
def operand_layout(block_m, warps, steps):
    """Thread t of a quad holds 2 * steps neighbouring words of rows g and g + 8: [block_m, 8 * steps]."""
    run = 2 * steps
    registers = [[0, 2**k] for k in range(run.bit_length() - 1)] + _row_registers(block_m, warps)
    return gl.DistributedLinearLayout(registers, [[0, run], [0, 2 * run], [1, 0], [2, 0], [4, 0]], _row_warps(warps), [],
                                      [block_m, 4 * run])


@gluon.constexpr_function
def quad_layout(block_m, warps):
    """[block_m, 4]: one value per row and thread of the quad."""
    return gl.DistributedLinearLayout(_row_registers(block_m, warps), [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]],
                                      _row_warps(warps), [], [block_m, 4])


@gluon.constexpr_function
def result_layout(block_m, block_n, warps):
    """[block_m, block_n]: thread t of a quad holds a quarter of every 64 channels (or of 32, where there are no more)."""
    run = min(block_n, 64) // 4
    registers = [[0, 2**k] for k in range(run.bit_length() - 1)] + _row_registers(block_m, warps)
    registers += [[0, 64 * 2**k] for k in range((block_n // 64).bit_length() - 1)] if block_n > 64 else []
    return gl.DistributedLinearLayout(registers, [[0, run], [0, 2 * run], [1, 0], [2, 0], [4, 0]], _row_warps(warps), [],
                                      [block_m, block_n])


@gluon.constexpr_function
def _row_registers(block_m, warps):
    return [[8, 0]] + [[16 * warps * 2**k, 0] for k in range((block_m // (16 * warps)).bit_length() - 1)]


@gluon.constexpr_function
def _row_warps(warps):
    return [[16 * 2**k, 0] for k in range(warps.bit_length() - 1)]


@gluon.constexpr_function
def _zeros(outputs):
    return ' '.join(f'mov.b32 ${i}, 0;' for i in range(1, outputs))


@gluon.constexpr_function
def popcount_asm(words, outputs):
    """The popcount of `words` registers together in the first output, 0 in the others."""
    parts = [f'popc.b32 c{i}, ${outputs + i};' for i in range(words)] + [f'add.s32 c0, c0, c{i};' for i in range(1, words)]
    return f'{{ .reg .b32 c<{words}>; {" ".join(parts)} mov.b32 $0, c0; {_zeros(outputs)} }}'


@gluon.constexpr_function
def sign_asm(run, op):
    """Bits D * factor + level >= 0 of `run` neighbours, inverted: sign bits are funnelled into the first output."""
    lines = []
    for i in reversed(range(run)):
        d, level = f'${run + i}', f'${2 * run + i}'
        if op == 'xnor':  # the level is in D
            lines.append(f'mov.b32 s, {d};')
        else:
            lines.append(f'mad.lo.s32 s, {d}, 2, {level};' if op == 'and' else f'sub.s32 s, {level}, {d};')
        lines.append('shf.l.wrap.b32 w, s, w, 1;')
    return f'{{ .reg .b32 s, w; mov.b32 w, 0; {" ".join(lines)} mov.b32 $0, w; {_zeros(run)} }}'


@gluon.constexpr_function
def compare_asm(run):
    """Bits a >= b of `run` neighbouring float32 (NaN: 0), the first one lowest, in the first output."""
    lines = []
    for i in reversed(range(run)):
        lines.append(f'set.ge.u32.f32 s, ${run + i}, ${2 * run + i}; shf.l.wrap.b32 w, s, w, 1;')
    return f'{{ .reg .b32 s, w; mov.b32 w, 0; {" ".join(lines)} mov.b32 $0, w; {_zeros(run)} }}'


@gluon.constexpr_function
def constraints(outputs, inputs):
    return ','.join(['=r'] * outputs + ['r'] * inputs)


@gluon.constexpr_function
def mma_asm(op, steps):
    """One or two chained m16n8k256: operands acc[4], a[4] per step, b[4] (two per step)."""
    mma = f'mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.{op}.popc'
    if steps == 1:
        return f'{mma} {{$0, $1, $2, $3}}, {{$8, $9, $10, $11}}, {{$12, $13}}, {{$4, $5, $6, $7}};'
    return ('{ .reg .b32 d0, d1, d2, d3; '
            f'{mma} {{d0, d1, d2, d3}}, {{$8, $9, $10, $11}}, {{$16, $17}}, {{$4, $5, $6, $7}}; '
            f'{mma} {{$0, $1, $2, $3}}, {{$12, $13, $14, $15}}, {{$18, $19}}, {{d0, d1, d2, d3}}; }}')


@gluon.jit
def _divide(n, multiplier, shift):
    """n // d for 0 <= n < 2**31 and the numbers of `tensorcore.divisor`."""
    high = gl.umulhi((n * 2).to(gl.uint32, bitcast=True), multiplier.to(gl.uint32, bitcast=True))
    return (high >> shift.to(gl.uint32, bitcast=True)).to(gl.int32, bitcast=True)


@gluon.jit
def _pixels(tile, pixels, BLOCK_M: gl.constexpr, ROWS: gl.constexpr):
    """Of a tile: which ones, and which of them exist."""
    row = tile * BLOCK_M + gl.arange(0, BLOCK_M, layout=ROWS)
    return gl.minimum(row, pixels - 1), row < pixels


@gluon.jit
def _place(pixel, height, width, out_width, out_pixels, image_multiplier, image_shift, row_multiplier, row_shift,
           WORDS: gl.constexpr, KERNEL_H: gl.constexpr, KERNEL_W: gl.constexpr, STRIDE_H: gl.constexpr, STRIDE_W: gl.constexpr,
           PAD_H: gl.constexpr, PAD_W: gl.constexpr, DILATION_H: gl.constexpr, DILATION_W: gl.constexpr):
    """Where a window begins (in words), which of its taps exist (bit kh * KERNEL_W + kw), and its class in the table.

    Only the first and the last row and column of a window are ever outside: `TensorCore.supports` sees to it.
    """
    image = _divide(pixel, image_multiplier, image_shift)
    within = pixel - image * out_pixels
    out_row = _divide(within, row_multiplier, row_shift)
    top = out_row * STRIDE_H - PAD_H
    left = (within - out_row * out_width) * STRIDE_W - PAD_W
    start = ((image * height + top) * width + left) * WORDS
    every: gl.constexpr = 2**(KERNEL_H * KERNEL_W) - 1
    taps = gl.full_like(pixel, every)
    border = gl.zeros_like(pixel)
    if PAD_H:
        above = top < 0
        below = top + DILATION_H * (KERNEL_H - 1) >= height
        first: gl.constexpr = 2**KERNEL_W - 1
        last: gl.constexpr = first << (KERNEL_W * (KERNEL_H - 1))
        taps = gl.where(above, every - first, taps) & gl.where(below, every - last, every)
        border += gl.where(above, 1, 0) + gl.where(below, 2, 0)
    if PAD_W:
        before = left < 0
        behind = left + DILATION_W * (KERNEL_W - 1) >= width
        column: gl.constexpr = every // (2**KERNEL_W - 1)
        taps = taps & gl.where(before, every - column, every) & gl.where(behind, every - column * 2**(KERNEL_W - 1), every)
        border += gl.where(before, 4, 0) + gl.where(behind, 8, 0)
    return start, taps, border


@gluon.jit
def _operand(x, start, taps, width, i, WORDS: gl.constexpr, KERNEL_W: gl.constexpr, DILATION_H: gl.constexpr,
             DILATION_W: gl.constexpr, STEPS: gl.constexpr, BLOCK_M: gl.constexpr, WARPS: gl.constexpr):
    """Words 16 i ... 16 i + 8 STEPS of every window, zero where there is no tap."""
    LAYOUT: gl.constexpr = operand_layout(BLOCK_M, WARPS, STEPS)
    place = 16 * i + gl.arange(0, 8 * STEPS, layout=gl.SliceLayout(0, LAYOUT))
    tap = place // WORDS
    offset = (tap // KERNEL_W * DILATION_H * width + tap % KERNEL_W * DILATION_W) * WORDS + place % WORDS
    start = gl.convert_layout(start, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
    taps = gl.convert_layout(taps, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
    return gl.load(x + (start[:, None] + offset[None, :]), mask=(taps[:, None] & (1 << tap)[None, :]) != 0, other=0)


@gluon.jit
def _quads(counts, QUAD: gl.constexpr, BLOCK_M: gl.constexpr, RUN: gl.constexpr):
    return gl.convert_layout(gl.sum(gl.reshape(counts, [BLOCK_M, 4, RUN]), axis=2), QUAD, assert_trivial=True)


@gluon.jit
def _ones(a, STEPS: gl.constexpr, BLOCK_M: gl.constexpr, WARPS: gl.constexpr):
    """Popcounts of words: [M, 4]."""
    counts = gl.inline_asm_elementwise(popcount_asm(1, 1), constraints(1, 1), [a], dtype=gl.int32, is_pure=True, pack=1)
    return _quads(counts, quad_layout(BLOCK_M, WARPS), BLOCK_M, 2 * STEPS)


@gluon.jit
def _words_of(bits, words, flip, pixel, real, channel, CHANNELS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
              RUN: gl.constexpr, INVERTED: gl.constexpr):
    """Stores the bits of every run of channels, which stand in its first element."""
    ELEMENT: gl.constexpr = gl.int16 if RUN == 16 else gl.int8
    word = gl.sum(gl.reshape(bits, [BLOCK_M, BLOCK_N // RUN, RUN]), axis=2)
    place = (channel // RUN) + gl.arange(0, BLOCK_N // RUN, layout=gl.SliceLayout(0, word.type.layout))
    if flip is not None:
        word = word ^ gl.load(flip.to(gl.pointer_type(ELEMENT), bitcast=True) + place)[None, :].to(gl.int32)
    if INVERTED:
        word = ~word
    row = gl.convert_layout(pixel, gl.SliceLayout(1, word.type.layout))
    mask = gl.convert_layout(real, gl.SliceLayout(1, word.type.layout))
    target = words.to(gl.pointer_type(ELEMENT), bitcast=True) + (row * (CHANNELS // RUN))[:, None] + place[None, :]
    gl.store(target, word.to(ELEMENT), mask=mask[:, None])


@gluon.jit
def _residual(shortcut, pixel, real, first, CHANNELS: gl.constexpr, BLOCK_N: gl.constexpr, LAYOUT: gl.constexpr):
    """The shortcut of a tile, channels `first` and on, in its own dtype."""
    pixel = gl.convert_layout(pixel, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
    real = gl.convert_layout(real, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
    channel = first + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, LAYOUT))
    return gl.load(shortcut + ((pixel * CHANNELS)[:, None] + channel[None, :]), mask=real[:, None], other=0)


@gluon.jit
def _finish(d, ones, early, border, pixel, real, block, table, words, result, shortcut, scale, bias, gamma, slope, zeta,
            threshold, flip, MODE: gl.constexpr, OP: gl.constexpr, ACT: gl.constexpr, ELEMENT: gl.constexpr,
            OUTPUTS: gl.constexpr, REPLICAS: gl.constexpr, BORDER: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
            LAYOUT: gl.constexpr):
    """From the counts D [BLOCK_M, BLOCK_N] to sums ('sums'), signs ('sign') or the float epilogue ('block')."""
    RUN: gl.constexpr = min(BLOCK_N, 64) // 4
    CHANNELS: gl.constexpr = REPLICAS * OUTPUTS
    ROWS: gl.constexpr = gl.SliceLayout(1, LAYOUT)
    lane = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, LAYOUT))
    ones = gl.convert_layout(gl.sum(ones, axis=1), ROWS, assert_trivial=True)
    border = gl.convert_layout(border, ROWS, assert_trivial=True)
    pixel = gl.convert_layout(pixel, ROWS, assert_trivial=True)
    real = gl.convert_layout(real, ROWS, assert_trivial=True)
    if OP == 'xnor':
        bits = gl.inline_asm_elementwise(sign_asm(RUN, OP), constraints(RUN, RUN), [d], dtype=gl.int32, is_pure=True, pack=RUN)
        _words_of(bits, words, flip, pixel, real, block * BLOCK_N, CHANNELS, BLOCK_M, BLOCK_N, RUN, True)
    elif MODE == 'sign':
        for replica in range(REPLICAS):
            first = replica * OUTPUTS + block * BLOCK_N
            if BORDER:
                level = gl.load(table + (border * CHANNELS)[:, None] + (first + lane)[None, :])
            else:
                level = gl.load(table + (first + lane))[None, :]
            if OP == 'and':
                level = level - ones[:, None]
            level = level + gl.zeros_like(d)
            bits = gl.inline_asm_elementwise(sign_asm(RUN, OP), constraints(RUN, 2 * RUN), [d, level], dtype=gl.int32,
                                             is_pure=True, pack=RUN)
            _words_of(bits, words, flip, pixel, real, first, CHANNELS, BLOCK_M, BLOCK_N, RUN, True)
    else:
        accumulator = block * BLOCK_N + lane
        if BORDER:
            sums = gl.load(table + (border * OUTPUTS)[:, None] + accumulator[None, :])
        else:
            sums = gl.load(table + accumulator)[None, :]
        if OP == 'and':
            sums = 4 * d + (sums - 2 * ones[:, None])
        else:
            sums = sums - 2 * d
        if MODE == 'sums':
            gl.store(result + (pixel * OUTPUTS)[:, None] + accumulator[None, :], sums, mask=real[:, None])
        else:
            for replica in range(REPLICAS):
                channel = replica * OUTPUTS + accumulator
                place = (pixel * CHANNELS)[:, None] + channel[None, :]
                v = (sums.to(gl.float32, bitcast=True) - MAGIC) * gl.load(scale + channel)[None, :]
                v = v + gl.load(bias + channel)[None, :]
                if shortcut is not None:
                    if REPLICAS > 1:
                        residual = _residual(shortcut, pixel, real, replica * OUTPUTS + block * BLOCK_N, CHANNELS, BLOCK_N,
                                             LAYOUT)
                    else:
                        residual = early[0]
                    v = v + residual.to(gl.float32)
                if ACT == 'prelu':
                    if gamma is not None:
                        v = v - gl.load(gamma + channel)[None, :]
                    v = gl.where(v > 0, v, gl.load(slope + channel)[None, :] * v)
                    if zeta is not None:
                        v = v + gl.load(zeta + channel)[None, :]
                elif ACT == 'relu':
                    v = gl.where(v < 0, 0.0, v)
                elif ACT == 'hardtanh':
                    v = gl.where(v < -1, -1.0, gl.where(v > 1, 1.0, v))
                rounded = v.to(ELEMENT)
                if words is not None:
                    if threshold is not None:
                        level = gl.load(threshold + channel)[None, :] + gl.zeros_like(v)
                    else:
                        level = gl.zeros_like(v)
                    bits = gl.inline_asm_elementwise(
                        compare_asm(RUN), constraints(RUN, 2 * RUN),
                        [rounded.to(gl.float32).to(gl.int32, bitcast=True), level.to(gl.int32, bitcast=True)],
                        dtype=gl.int32, is_pure=True, pack=RUN)
                    _words_of(bits, words, None, pixel, real, replica * OUTPUTS + block * BLOCK_N, CHANNELS, BLOCK_M, BLOCK_N,
                              RUN, False)
                if result is not None:
                    gl.store(result + place, rounded, mask=real[:, None])


@gluon.jit
def _mma_group(x, weights, d, ones, start, taps, width, i, STEPS: gl.constexpr, WORDS: gl.constexpr, KERNEL_W: gl.constexpr,
               DILATION_H: gl.constexpr, DILATION_W: gl.constexpr, OP: gl.constexpr, BLOCK_M: gl.constexpr,
               WARPS: gl.constexpr, L: gl.constexpr):
    """One or two k-steps of mma.sync: adds to the counts D [N / 8, M / 16 WARPS, WARPS, 8, 4, 4] and to the ones [M, 4]."""
    ATOMS: gl.constexpr = BLOCK_M // (16 * WARPS)
    a = _operand(x, start, taps, width, i, WORDS, KERNEL_W, DILATION_H, DILATION_W, STEPS, BLOCK_M, WARPS)
    if OP == 'and':
        ones += _ones(a, STEPS, BLOCK_M, WARPS)
    b = weights.index(i).load(gl.SliceLayout(1, gl.SliceLayout(2, L)))[:, None, None, :, :, :]
    if STEPS == 2:  # rows are (atom, warp, half, g), words (t, step, K half); registers of the operand (K half, half)
        a = gl.permute(gl.reshape(a, [ATOMS, WARPS, 2, 8, 4, 2, 2]), [0, 1, 3, 4, 6, 2, 5])
        a, a_next = gl.split(gl.reshape(a, [ATOMS, WARPS, 8, 4, 4, 2]))
        a = gl.convert_layout(gl.reshape(a, [1, ATOMS, WARPS, 8, 4, 4]), L, assert_trivial=True)
        a_next = gl.convert_layout(gl.reshape(a_next, [1, ATOMS, WARPS, 8, 4, 4]), L, assert_trivial=True)
        d = gl.inline_asm_elementwise(mma_asm(OP, 2), constraints(4, 16), [d, a, a_next, b], dtype=gl.int32, is_pure=True,
                                      pack=4)
    else:
        a = gl.permute(gl.reshape(a, [ATOMS, WARPS, 2, 8, 4, 2]), [0, 1, 3, 4, 5, 2])
        a = gl.convert_layout(gl.reshape(a, [1, ATOMS, WARPS, 8, 4, 4]), L, assert_trivial=True)
        d = gl.inline_asm_elementwise(mma_asm(OP, 1), constraints(4, 12), [d, a, b], dtype=gl.int32, is_pure=True, pack=4)
    return d, ones


@gluon.jit(do_not_specialize=RUNTIME)
def conv_mma(x, w, table, words, result, shortcut, scale, bias, gamma, slope, zeta, threshold, flip, pixels, tiles, height,
             width, out_width, out_pixels, image_multiplier, image_shift, row_multiplier, row_shift, WORDS: gl.constexpr,
             KERNEL_H: gl.constexpr, KERNEL_W: gl.constexpr, STRIDE_H: gl.constexpr, STRIDE_W: gl.constexpr,
             PAD_H: gl.constexpr, PAD_W: gl.constexpr, DILATION_H: gl.constexpr, DILATION_W: gl.constexpr,
             BORDER: gl.constexpr, MODE: gl.constexpr, OP: gl.constexpr, ACT: gl.constexpr, ELEMENT: gl.constexpr,
             OUTPUTS: gl.constexpr, REPLICAS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
             WARPS: gl.constexpr):
    """With `mma.sync` (BMMA) from inline assembly; the arguments are those of `tensorcore.Plan`."""
    STEPS: gl.constexpr = (KERNEL_H * KERNEL_W * WORDS + 7) // 8
    GROUPS: gl.constexpr = (STEPS + 1) // 2
    N8: gl.constexpr = BLOCK_N // 8
    ATOMS: gl.constexpr = BLOCK_M // (16 * WARPS)
    RUN: gl.constexpr = min(BLOCK_N, 64) // 4
    L: gl.constexpr = gl.BlockedLayout([N8, ATOMS, 1, 1, 1, 4], [1, 1, 1, 8, 4, 1], [1, 1, WARPS, 1, 1, 1], [5, 4, 3, 2, 1, 0])
    RESULT: gl.constexpr = result_layout(BLOCK_M, BLOCK_N, WARPS)
    ROWS: gl.constexpr = gl.SliceLayout(1, quad_layout(BLOCK_M, WARPS))
    BLOCKS: gl.constexpr = OUTPUTS // BLOCK_N
    EARLY: gl.constexpr = shortcut is not None and REPLICAS == 1  # load the shortcut before the MMAs rather than behind them
    block = gl.program_id(0) % BLOCKS

    COPY: gl.constexpr = gl.BlockedLayout([1, 1, 1, 4], [1, 8, 4, 1], [WARPS, 1, 1, 1], [3, 2, 1, 0])
    weights = gl.allocate_shared_memory(gl.int32, [GROUPS, N8, 8, 4, 4], gl.SwizzledSharedLayout(1, 1, 1, [3, 2, 1, 0]))
    n8 = gl.arange(0, N8, layout=gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, COPY))))[:, None, None, None]
    g = gl.arange(0, 8, layout=gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, COPY))))[None, :, None, None]
    t = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, COPY))))[None, None, :, None]
    r = gl.arange(0, 4, layout=gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, COPY))))[None, None, None, :]
    for i in gl.static_range(GROUPS):
        async_load(weights.index(i), w + (block * GROUPS + i) * (N8 * 128) + (n8 * 128 + g * 16 + t * 4 + r))
    async_copy.commit_group()
    async_copy.wait_group(0)
    barrier()

    for tile in range(gl.program_id(0) // BLOCKS, tiles, gl.num_programs(0) // BLOCKS):
        row = tile * BLOCK_M + gl.arange(0, BLOCK_M, layout=ROWS)
        real = row < pixels
        pixel = gl.minimum(row, pixels - 1)
        start, taps, border = _place(pixel, height, width, out_width, out_pixels, image_multiplier, image_shift,
                                     row_multiplier, row_shift, WORDS, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
                                     DILATION_H, DILATION_W)
        early = (_residual(shortcut, pixel, real, block * BLOCK_N, OUTPUTS, BLOCK_N, RESULT),) if EARLY else ()
        d = gl.zeros([N8, ATOMS, WARPS, 8, 4, 4], gl.int32, L)
        ones = gl.zeros([BLOCK_M, 4], gl.int32, quad_layout(BLOCK_M, WARPS))
        for i in gl.static_range(GROUPS):
            d, ones = _mma_group(x, weights, d, ones, start, taps, width, i, 2 if 2 * i + 1 < STEPS else 1, WORDS, KERNEL_W,
                                 DILATION_H, DILATION_W, OP, BLOCK_M, WARPS, L)
        # [64s, 8s, atom, warp, g, t, half, e] to rows (atom, warp, half, g) and channels (64s, t, 8s, e)
        d = gl.reshape(d, [BLOCK_N // (4 * RUN), RUN // 2, ATOMS, WARPS, 8, 4, 2, 2])
        d = gl.reshape(gl.permute(d, [2, 3, 6, 4, 0, 5, 1, 7]), [BLOCK_M, BLOCK_N])
        d = gl.convert_layout(d, RESULT, assert_trivial=True)
        _finish(d, ones, early, border, pixel, real, block, table, words, result, shortcut, scale, bias, gamma, slope, zeta,
                threshold, flip, MODE, OP, ACT, ELEMENT, OUTPUTS, REPLICAS, BORDER, BLOCK_M, BLOCK_N, RESULT)


@gluon.jit
def _fragments(a, LAYOUT: gl.constexpr, STEPS: gl.constexpr, BLOCK_M: gl.constexpr):
    """Words of one or two k-steps as operands of int8 products."""
    a = gl.join(gl.join(a, a), gl.join(a, a))  # four times the word, as the input of what names it as its bytes
    a = gl.inline_asm_elementwise('mov.b32 $0, $1;', '=r,r,r,r,r', [gl.reshape(a, [BLOCK_M, 32 * STEPS])], dtype=gl.int8,
                                  is_pure=True, pack=4)
    if STEPS == 2:  # bytes (t, step, half of K, byte) to two operands (half of K, t, byte)
        a, a_next = gl.split(gl.permute(gl.reshape(a, [BLOCK_M, 4, 2, 2, 4]), [0, 3, 1, 4, 2]))
        a = gl.convert_layout(gl.reshape(a, [BLOCK_M, 32]), LAYOUT, assert_trivial=True)
        return a, gl.convert_layout(gl.reshape(a_next, [BLOCK_M, 32]), LAYOUT, assert_trivial=True)
    else:
        a = gl.reshape(gl.permute(gl.reshape(a, [BLOCK_M, 4, 2, 4]), [0, 2, 1, 3]), [BLOCK_M, 32])
        return (gl.convert_layout(a, LAYOUT, assert_trivial=True),)


@gluon.jit
def _levels(table, border, block, OUTPUTS: gl.constexpr, BORDER: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
            LAYOUT: gl.constexpr):
    """What the counts of a tile start from; the table has the columns of the MMA."""
    place = table + block * BLOCK_N + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, LAYOUT))
    if BORDER:
        border = gl.convert_layout(border, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
        return gl.load(place[None, :] + (border * OUTPUTS)[:, None])
    else:
        return gl.load(place[None, :] + gl.zeros([BLOCK_M, BLOCK_N], gl.int32, LAYOUT))  # no registers copied behind a fence


@gluon.jit
def _operands(x, start, taps, width, BEGIN: gl.constexpr, END: gl.constexpr, ALL: gl.constexpr, WORDS: gl.constexpr,
              KERNEL_W: gl.constexpr, DILATION_H: gl.constexpr, DILATION_W: gl.constexpr, BLOCK_M: gl.constexpr,
              WARPS: gl.constexpr):
    """Those of k-steps 2 BEGIN ... 2 END of ALL, two by two."""
    every = ()
    for i in gl.static_range(BEGIN, END):
        a = _operand(x, start, taps, width, i, WORDS, KERNEL_W, DILATION_H, DILATION_W, 2 if 2 * i + 1 < ALL else 1, BLOCK_M,
                     WARPS)
        every = every + (a,)  # noqa: RUF005 (Gluon knows no starred tuples)
    return every


@gluon.jit(do_not_specialize=RUNTIME)
def conv_wgmma(x, w, table, words, result, shortcut, scale, bias, gamma, slope, zeta, threshold, flip, pixels, tiles, height,
               width, out_width, out_pixels, image_multiplier, image_shift, row_multiplier, row_shift, WORDS: gl.constexpr,
               KERNEL_H: gl.constexpr, KERNEL_W: gl.constexpr, STRIDE_H: gl.constexpr, STRIDE_W: gl.constexpr,
               PAD_H: gl.constexpr, PAD_W: gl.constexpr, DILATION_H: gl.constexpr, DILATION_W: gl.constexpr,
               BORDER: gl.constexpr, MODE: gl.constexpr, OP: gl.constexpr, ACT: gl.constexpr, ELEMENT: gl.constexpr,
               OUTPUTS: gl.constexpr, REPLICAS: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr,
               WARPS: gl.constexpr):
    """With int8 `wgmma` that `tensorcore_rewrite` turns into 1-bit ones (BGMMA); w is bytes, OP is 'and' or 'xnor'.

    The words (and the shortcut) of a tile are loaded while the tile before it is computed.
    """
    STEPS: gl.constexpr = (KERNEL_H * KERNEL_W * WORDS + 7) // 8
    RUN: gl.constexpr = min(BLOCK_N, 64) // 4
    MMA: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BLOCK_N, 32])
    A: gl.constexpr = gl.DotOperandLayout(0, MMA, 4)
    RESULT: gl.constexpr = result_layout(BLOCK_M, BLOCK_N, WARPS)
    ROWS: gl.constexpr = gl.SliceLayout(1, quad_layout(BLOCK_M, WARPS))
    BLOCKS: gl.constexpr = OUTPUTS // BLOCK_N
    EARLY: gl.constexpr = shortcut is not None and REPLICAS == 1  # load the shortcut before the MMAs rather than behind them
    GROUPS: gl.constexpr = (STEPS + 1) // 2
    AHEAD: gl.constexpr = GROUPS if GROUPS <= 9 else 4  # the registers hold no more
    PRODUCTS: gl.constexpr = 2 * STEPS if OP == 'xnor' else STEPS
    block = gl.program_id(0) % BLOCKS

    # ptxas knows no such instruction: it refuses the kernel unless the rewriting, which takes the marker out, has taken place.
    thread = gl.arange(0, 32 * WARPS, layout=gl.BlockedLayout([1], [32], [WARPS], [0]))
    gl.inline_asm_elementwise(MARKER.value + ' mov.b32 $0, $1;', '=r,r', [thread], dtype=gl.int32, is_pure=False, pack=1)

    COPY: gl.constexpr = gl.BlockedLayout([1, 16], [16, 2], [WARPS, 1], [1, 0])
    weights = gl.allocate_shared_memory(gl.int8, [PRODUCTS, BLOCK_N, 32], gl.NVMMASharedLayout(32, 8, 2))
    n = gl.arange(0, BLOCK_N, layout=gl.SliceLayout(1, COPY))[:, None]
    k = gl.arange(0, 32, layout=gl.SliceLayout(0, COPY))[None, :]
    for i in gl.static_range(PRODUCTS):
        async_load(weights.index(i), w + (block * PRODUCTS + i) * (BLOCK_N * 32) + (n * 32 + k))
    async_copy.commit_group()

    first, stride = gl.program_id(0) // BLOCKS, gl.num_programs(0) // BLOCKS
    pixel, real = _pixels(first, pixels, BLOCK_M, ROWS)
    start, taps, border = _place(pixel, height, width, out_width, out_pixels, image_multiplier, image_shift, row_multiplier,
                                 row_shift, WORDS, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H,
                                 DILATION_W)
    ahead = _operands(x, start, taps, width, 0, AHEAD, STEPS, WORDS, KERNEL_W, DILATION_H, DILATION_W, BLOCK_M, WARPS)
    early = (_residual(shortcut, pixel, real, block * BLOCK_N, OUTPUTS, BLOCK_N, RESULT),) if EARLY else ()
    async_copy.wait_group(0)
    fence_async_shared()  # by the threads that wrote, before the barrier: only then wgmma sees what all of them wrote
    barrier()
    zero = pixels >> 31
    for tile in range(first, tiles, stride):
        rest = _operands(x, start, taps, width, AHEAD, GROUPS, STEPS, WORDS, KERNEL_W, DILATION_H, DILATION_W, BLOCK_M, WARPS)
        ones = gl.zeros([BLOCK_M, 4], gl.int32, quad_layout(BLOCK_M, WARPS))
        fragments, inverted = (), ()  # before the first product: else each waits for the one before it
        for i in gl.static_range(GROUPS):
            a = (ahead + rest)[i]
            if OP == 'and':
                ones += _ones(a, 2 if 2 * i + 1 < STEPS else 1, BLOCK_M, WARPS)
            else:
                inverted = inverted + _fragments(~a, A, 2 if 2 * i + 1 < STEPS else 1, BLOCK_M)
            if i < AHEAD:
                a = a ^ zero  # what was loaded gets its place as an operand here: else ptxas moves, and waits, at the load
            fragments = fragments + _fragments(a, A, 2 if 2 * i + 1 < STEPS else 1, BLOCK_M)
        fragments = fragments + inverted
        if OP == 'and':
            d = gl.zeros([BLOCK_M, BLOCK_N], gl.int32, MMA)
        else:
            d = _levels(table, border, block, OUTPUTS, BORDER, BLOCK_M, BLOCK_N, MMA)
        for i in gl.static_range(PRODUCTS):
            d = warpgroup_mma(fragments[i], weights.index(i).permute((1, 0)), d, use_acc=OP == 'xnor' or i > 0, is_async=True)
            if i % WAIT_STEPS == WAIT_STEPS - 1 and i + 1 < PRODUCTS:
                d = warpgroup_mma_wait(0, deps=[d])
        shortcuts, borders = early, border
        pixel, real = _pixels(tile + stride, pixels, BLOCK_M, ROWS)
        start, taps, border = _place(pixel, height, width, out_width, out_pixels, image_multiplier, image_shift,
                                     row_multiplier, row_shift, WORDS, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W,
                                     DILATION_H, DILATION_W)
        taps = gl.where(tile + stride < tiles, taps, 0)
        ahead = _operands(x, start, taps, width, 0, AHEAD, STEPS, WORDS, KERNEL_W, DILATION_H, DILATION_W, BLOCK_M, WARPS)
        early = (_residual(shortcut, pixel, real, block * BLOCK_N, OUTPUTS, BLOCK_N, RESULT),) if EARLY else ()
        d = warpgroup_mma_wait(0, deps=[d])
        # columns of the MMA are (64s, 8s, t, e), channels (64s, t, 8s, e)
        d = gl.permute(gl.reshape(d, [BLOCK_M, BLOCK_N // (4 * RUN), RUN // 2, 4, 2]), [0, 1, 3, 2, 4])
        d = gl.convert_layout(gl.reshape(d, [BLOCK_M, BLOCK_N]), RESULT, assert_trivial=True)
        now, exists = _pixels(tile, pixels, BLOCK_M, ROWS)
        _finish(d, ones, shortcuts, borders, now, exists, block, table, words, result, shortcut, scale, bias, gamma, slope,
                zeta, threshold, flip, MODE, OP, ACT, ELEMENT, OUTPUTS, REPLICAS, BORDER, BLOCK_M, BLOCK_N, RESULT)
