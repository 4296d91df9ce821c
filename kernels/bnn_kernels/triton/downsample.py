"""Average pooling and a real-valued 1x1 convolution in one pass: the shortcut of a block that halves the image."""

import triton
import triton.language as tl

from .epilogue import decode, encode
from .geometry import pixel_of


@triton.jit(do_not_specialize=['pixels', 'height', 'width', 'out_height', 'out_width'])
def downsample(x, weight, bias, out, pixels, height, width, out_height, out_width, image_stride, row_stride, column_stride,
               channel_stride, CHANNELS: tl.constexpr, OUTPUTS: tl.constexpr, POOL: tl.constexpr, ELEMENT: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """BLOCK_M output pixels and BLOCK_N channels; sums in float32, without TF32.

    Args:
        x: [images, CHANNELS, height, width], apart by the strides. weight: float32 [OUTPUTS, CHANNELS]. bias: [OUTPUTS].
        out: [pixels, OUTPUTS]. Windows are cut at the last row and column, and averages are over what is left.
    """
    tiles = tl.cdiv(OUTPUTS, BLOCK_N)
    pixel = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    channel = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    real_pixel, real_channel = pixel < pixels, channel < OUTPUTS
    image, row, column = pixel_of(pixel, out_height, out_width)
    top, left = row * POOL, column * POOL
    rows, columns = tl.minimum(height - top, POOL), tl.minimum(width - left, POOL)
    count = tl.maximum(rows * columns, 1).to(tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, CHANNELS, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        pooled = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
        for tap in range(POOL * POOL):
            y, z = top + tap // POOL, left + tap % POOL
            inside = real_pixel & (y < height) & (z < width)
            place = image.to(tl.int64) * image_stride + y.to(tl.int64) * row_stride + z.to(tl.int64) * column_stride
            place = place[:, None] + (k.to(tl.int64) * channel_stride)[None, :]
            pooled += decode(tl.load(x + place, mask=inside[:, None] & (k < CHANNELS)[None, :], other=0))
        w = tl.load(weight + channel[None, :] * CHANNELS + k[:, None], mask=real_channel[None, :] & (k < CHANNELS)[:, None],
                    other=0)
        acc = tl.dot(pooled / count[:, None], w, acc, input_precision='ieee')
    v = acc + tl.load(bias + channel, mask=real_channel, other=0)[None, :]
    tl.store(out + pixel.to(tl.int64)[:, None] * OUTPUTS + channel[None, :], encode(v, ELEMENT),
             mask=real_pixel[:, None] & real_channel[None, :])
