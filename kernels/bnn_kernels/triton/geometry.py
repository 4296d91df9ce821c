"""Which input pixel a tap of a convolution reads."""

import triton
import triton.language as tl


@triton.jit
def pixel_of(pixel, height, width):
    """Flat index of an output pixel to (image, row, column)."""
    image, within = pixel // (height * width), pixel % (height * width)
    return image, within // width, within % width


@triton.jit
def source(position, tap, size, STRIDE: tl.constexpr, PADDING: tl.constexpr, DILATION: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The input row that `tap` reads for output row `position`, and whether it exists; the same for columns.

    Transposed: the input row that puts something there through `tap`.
    """
    if TRANSPOSED:
        reach = position + PADDING - tap * DILATION
        index = reach // STRIDE
        exists = (reach >= 0) & (reach % STRIDE == 0) & (index < size)
    else:
        index = position * STRIDE - PADDING + tap * DILATION
        exists = (index >= 0) & (index < size)
    return index, exists
