"""Counting the bits of words."""

import triton
import triton.language as tl


@triton.jit
def popcount(words):
    """Bits set in each int32; compilers recognise the idiom and emit one instruction."""
    x = words.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)
