"""Real layers in int8 on the Triton backends: kernels and operators; the arithmetic is that of `bnn_kernels.int8_reference`.

A value q in uint8 counts as q - 128, so that both factors are int8 as the matrix units want them. Out-of-image taps hold the
zero point. Then the sum of (q - zero) w is that of q w, less a number of each output channel, `correction`.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from ..derived import Derived
from ..epilogue import Epilogue
from ..geometry import Int8Conv2dGeometry, Pool2dGeometry
from ..layout import words_per_group
from .device import architecture, on
from .epilogue import decode, eight_bits, finish
from .geometry import pixel_of, source
from .launch import ALIGNMENT, ELEMENTS, NO_CODING, Launch, Results, aligned, convolution, extent, limit, operator
from .tables import tile

BLOCK = 1024  # elements of `quantize`
LAYOUT = torch.channels_last


@triton.jit
def signed(q):
    """uint8 to int8: 128 less."""
    return (q ^ 128).to(tl.int8, bitcast=True) if q.dtype == tl.uint8 else q


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def convolve_int8(x, zero, w, correction, out_inverse, out_zero, sums, words, out, shortcut, scale, bias, gamma, slope,
                  zeta, threshold, flip, pixels, height, width, out_height, out_width, CHANNELS: tl.constexpr,
                  OUTPUTS: tl.constexpr, GROUPS: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
                  STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
                  DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, TRANSPOSED: tl.constexpr, ONE_TERM: tl.constexpr,
                  REPLICAS: tl.constexpr, ACT: tl.constexpr, ELEMENT: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """BLOCK_M output pixels and BLOCK_N channels, of one group unless ONE_TERM.

    Args:
        x: uint8 or int8 [images, height, width, GROUPS * CHANNELS]. zero, w, correction: from `prepared`.
        ONE_TERM: a tap has one term, as in a depthwise convolution, so no matrix unit takes part.
    """
    PER_GROUP: tl.constexpr = OUTPUTS // GROUPS
    TERMS: tl.constexpr = KERNEL_H * KERNEL_W * CHANNELS
    ROW: tl.constexpr = (TERMS + BLOCK_K - 1) // BLOCK_K * BLOCK_K
    PADDED: tl.constexpr = TRANSPOSED or PADDING_H + PADDING_W > 0
    tile_groups: tl.constexpr = 1 if ONE_TERM else GROUPS
    tiles = tl.cdiv(OUTPUTS // tile_groups, BLOCK_N)
    tile = tl.program_id(0) % (tile_groups * tiles)
    pixel = tl.program_id(0) // (tile_groups * tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    group, start = tile // tiles, tile % tiles * BLOCK_N
    first_channel, count = group * PER_GROUP + start, OUTPUTS // tile_groups - start
    lane = tl.arange(0, BLOCK_N)
    real_pixel, real_channel = pixel < pixels, lane < count
    image, row, column = pixel_of(pixel, out_height, out_width)
    x_image = image.to(tl.int64) * height
    w_rows = w + (first_channel + lane) * ROW

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    if ONE_TERM:
        channel = (first_channel + lane) // PER_GROUP
        level = tl.load(zero + channel, mask=real_channel, other=0)
        for tap in range(TERMS):
            y, y_exists = source(row, tap // KERNEL_W, height, STRIDE_H, PADDING_H, DILATION_H, TRANSPOSED)
            z, z_exists = source(column, tap % KERNEL_W, width, STRIDE_W, PADDING_W, DILATION_W, TRANSPOSED)
            inside = real_pixel & y_exists & z_exists
            place = ((x_image + y) * width + z)[:, None] * GROUPS + channel[None, :]
            q = tl.load(x + place, mask=inside[:, None] & real_channel[None, :], other=0)
            q = tl.where(inside[:, None], q, level[None, :])
            weight = tl.load(w_rows + tap, mask=real_channel, other=0)
            acc += signed(q).to(tl.int32) * weight.to(tl.int32)[None, :]
    else:
        for first in range(0, ROW, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            if CHANNELS % BLOCK_K == 0:  # one tap
                tap, channel = tl.zeros((1,), tl.int32) + first // CHANNELS, first % CHANNELS + tl.arange(0, BLOCK_K)
            else:
                tap, channel = k // CHANNELS, k % CHANNELS
            y, y_exists = source(row[:, None], (tap // KERNEL_W)[None, :], height, STRIDE_H, PADDING_H, DILATION_H, TRANSPOSED)
            z, z_exists = source(column[:, None], (tap % KERNEL_W)[None, :], width, STRIDE_W, PADDING_W, DILATION_W,
                                 TRANSPOSED)
            inside = real_pixel[:, None] & y_exists & z_exists
            if ROW > TERMS:
                inside = inside & (k < TERMS)[None, :]
            channel += group * CHANNELS
            place = ((x_image[:, None] + y) * width + z) * (GROUPS * CHANNELS) + channel[None, :]
            q = tl.load(x + place, mask=inside, other=0)
            if PADDED:
                q = tl.where(inside, q, tl.load(zero + channel)[None, :])
            weight = tl.load(w_rows[None, :] + k[:, None], mask=real_channel[None, :], other=0)
            acc = tl.dot(signed(q), weight, acc, out_dtype=tl.int32)

    acc -= tl.load(correction + first_channel + lane, mask=real_channel, other=0)[None, :]
    finish(acc, pixel, real_pixel, first_channel, count, sums, words, out, shortcut, scale, bias, gamma, slope, zeta,
           threshold, flip, OUTPUTS, REPLICAS, ACT, ELEMENT, BLOCK_M, BLOCK_N, out_inverse, out_zero)


@triton.jit(do_not_specialize=['count'])
def quantize(x, inverse, zero, out, count, image_stride, pixel_stride, channel_stride, CHANNELS: tl.constexpr,
             DENSE: tl.constexpr, ELEMENT: tl.constexpr, BLOCK: tl.constexpr):
    """`count` values of one image, pixels by CHANNELS, apart by the strides or dense, to bytes."""
    tiles = tl.cdiv(count, BLOCK)
    image, within = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * BLOCK + tl.arange(0, BLOCK)
    place = image * count + within
    at = place
    if not DENSE:
        at = image * image_stride + (within // CHANNELS).to(tl.int64) * pixel_stride
        at += (within % CHANNELS).to(tl.int64) * channel_stride
    value = decode(tl.load(x + at, mask=within < count, other=0))
    tl.store(out + place, eight_bits(value, inverse, zero, ELEMENT), mask=within < count)


@Derived
def inverse_of(scale: Tensor) -> Tensor:
    """1 / scale, which devices divide in different ways."""
    return 1 / scale


@Derived
def prepared(weight: Tensor, x_zero: Tensor, groups: int, row: int) -> tuple[Tensor, Tensor, Tensor]:
    """`[O, C / groups, kH, kW]` to the zero point of each input channel [C], rows of taps by channels and zeros [O, row], and
    what is too much in each sum, int32 [O]."""
    outputs, channels = weight.shape[:2]
    zeros = x_zero.expand(groups * channels).clone()
    rows = F.pad(weight.flatten(2).transpose(1, 2).flatten(1), (0, row - weight[0].numel()))
    signed_zeros = zeros.view(groups, channels).repeat_interleave(outputs // groups, 0).to(torch.int32)
    signed_zeros -= 128 if x_zero.dtype == torch.uint8 else 0
    return zeros, rows, (weight.flatten(2).sum(2, dtype=torch.int32) * signed_zeros).sum(1, dtype=torch.int32)


class Int8Operators:
    """What the Triton backends add to their convolutions: one launch, two where words cross tiles or sums are pooled."""

    @operator
    def quantize(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Callable[..., Tensor]:
        layout = LAYOUT if x.dim() == 4 else torch.contiguous_format
        sizes, device, dtype = extent(x.shape, layout), x.device, zero_point.dtype
        dense = x.dim() != 4 or x.is_contiguous(memory_format=layout)
        (images, channels, pixels), strides = (1, 1, x.numel()), (0, 0, 0)
        if not dense:
            (images, channels, pixels), strides = x.flatten(2).shape, x.flatten(2).stride()
        limit(channels * pixels + BLOCK)
        numbers = dict(count=channels * pixels, image_stride=strides[0], channel_stride=strides[1], pixel_stride=strides[2],
                       CHANNELS=channels, DENSE=dense, ELEMENT=ELEMENTS[dtype], BLOCK=BLOCK)
        programs = images * -(-channels * pixels // BLOCK)
        launches = [Launch(quantize, programs, numbers, enable_fp_fusion=False) for _ in range(2)]  # as in `packing`

        def call(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
            out = x.new_empty_strided(*sizes, dtype=dtype)
            if programs:
                x = x.detach().contiguous(memory_format=layout) if dense else x.detach().flatten(2)
                with on(device):
                    launches[x.data_ptr() % ALIGNMENT == 0](x, inverse_of([scale]), aligned(zero_point), out)
            return out
        return call

    @operator
    def int8_conv2d(self, x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, epilogue: Epilogue,
                    shortcut: Tensor | None, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype,
                    pack: bool, keep: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        run = convolution_int8(x, geometry, epilogue, dtype, pack, keep)
        return lambda x, x_zero, weight, geometry, epilogue, shortcut, out_scale, out_zero, dtype, pack, keep: run(
            x, x_zero, weight, epilogue, shortcut, out_scale, out_zero)

    @operator
    def int8_pooled2d(self, x: Tensor, x_zero: Tensor, weight: Tensor, geometry: Int8Conv2dGeometry, window: Pool2dGeometry,
                      epilogue: Epilogue, out_scale: Tensor | None, out_zero: Tensor | None, dtype: torch.dtype,
                      pack: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        run = convolution_int8(x, geometry, epilogue, dtype, pack, True, window)
        return lambda x, x_zero, weight, geometry, window, epilogue, out_scale, out_zero, dtype, pack: run(
            x, x_zero, weight, epilogue, None, out_scale, out_zero)


def convolution_int8(x: Tensor, geometry: Int8Conv2dGeometry, epilogue: Epilogue, dtype: torch.dtype, pack: bool, keep: bool,
                     window: Pool2dGeometry | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
    """What makes words and stream of images like `x`."""
    batch, _, *image = x.shape
    shape = geometry.shape((batch, *image)) if window is None else window.shape(geometry.shape((batch, *image)))
    words_extent = extent((batch, *shape[2:], epilogue.out_groups * words_per_group(epilogue.width, epilogue.out_groups))
                          if pack else (0,))
    stream_extent = extent((batch, epilogue.width, *shape[2:]), LAYOUT) if keep else extent((0,))
    block = tile('int8', architecture(x.device), geometry.group_outputs)['BLOCK_K']
    settings = geometry.groups, -(-geometry.terms // block) * block
    run = convolution(convolve_int8, 'int8', (batch, *image), x.device, geometry, epilogue.width, epilogue.out_groups,
                      epilogue.act, dtype, window)

    def call(x: Tensor, x_zero: Tensor, weight: Tensor, epilogue: Epilogue, shortcut: Tensor | None, out_scale: Tensor | None,
             out_zero: Tensor | None) -> tuple[Tensor, Tensor]:
        words = x.new_empty_strided(*words_extent, dtype=torch.int32)
        stream = x.new_empty_strided(*stream_extent, dtype=dtype)
        scale, bias, _, gamma, slope, zeta, threshold, _ = epilogue
        vectors = map(aligned, (scale, bias, gamma, slope, zeta, threshold))
        coding = NO_CODING if out_scale is None else (inverse_of([out_scale]), aligned(out_zero))
        run((aligned(x, LAYOUT), *prepared([weight, x_zero], settings), *coding),
            Results(None, words if pack else None, stream if keep else None, aligned(shortcut, LAYOUT), *vectors), coding)
        return words, stream
    return call
