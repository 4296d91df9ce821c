"""What the tensor-core kernels take instead of `w_words`: weights in the order of the MMA's operand, and a table.

Both depend on parameters only and are made once per weight: see `operands`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..derived import Derived
from ..geometry import Conv2dGeometry
from ..layout import pack_bits, unpack_bits

MAGIC_BITS = 0x4B400000  # see tensorcore_kernels.MAGIC
BORDER_CLASSES = 16  # bit 0: the first row of the window is outside, 1: the last row, 2: the first column, 3: the last column


class Operands(NamedTuple):
    """`weight` int32 in operand order, for wgmma int8; `table` int32 [classes, O], for 'sign' [classes, P]; `flip`: words."""

    weight: Tensor
    table: Tensor
    flip: Tensor | None


def make_operands(w_words: Tensor, threshold: Tensor | None, flip: Tensor | None, geometry: Conv2dGeometry, border: bool,
                  mode: str, op: str, block_n: int, per_step: bool) -> Operands:
    w_words = w_words.reshape(geometry.w_shape)
    constant = constants(w_words, geometry.channels, geometry.pad_value, border, op)
    if mode == 'sign':  # acc >= threshold, halved: 2 D - SA + level >= 0 or level - D >= 0
        level = threshold.long().clamp(-2**24, 2**24)  # no sum is that large
        constant = (constant.repeat(1, len(level) // len(w_words)) - level) >> 1
    elif mode == 'block':
        constant = constant + MAGIC_BITS
    weight = operand_order(w_words, block_n, per_step)
    if op == 'xnor':
        weight = torch.cat([weight, ~weight], 1)  # behind the k-steps those of pairs of zeros
        constant = column_order(constant, block_n)
    return Operands(weight.view(torch.int8) if per_step else weight, constant.to(torch.int32).contiguous(),
                    None if flip is None else pack_bits(flip))


def constants(w_words: Tensor, channels: int, pad_value: int, border: bool, op: str) -> Tensor:
    """Int64 [classes, O]: what is missing to the sum of signs over a window whose outside bits are 0.

    With V taps inside, counts over them: and: sum = 4 D - 2 SA + (V C - 2 SW);  xor: sum = -2 D + (V C + 2 SW of the taps
    outside); xnor, which counts equal bits: sum = 2 D - V C less two for each pair of zeros that is filled up or, for a
    tap outside, that the weight has. A tap outside adds nothing, or for pad_value = +-1 its sum of weights, or less it:
    +-(2 SW - C).
    """
    ones = unpack_bits(w_words, 32 * w_words.shape[-1]).sum(-1)  # SW [O, kH, kW]; filled bits are 0
    inside = _inside(*w_words.shape[1:3], border, w_words.device)
    outside = ~inside

    def over(taps, values):  # [classes, kH, kW] and [O, kH, kW] to [classes, O]
        return (taps[:, None] * values).sum((2, 3))

    if op == 'xnor':
        bits = 32 * w_words.shape[-1]
        filled = 256 * steps(w_words) - bits * ones[0].numel()
        missing = -2 * filled - over(inside, torch.full_like(ones, 2 * bits - channels)) - over(outside, 2 * (bits - ones))
    elif op == 'and':
        missing = over(inside, channels - 2 * ones)
    else:
        missing = over(inside, torch.full_like(ones, channels)) + over(outside, 2 * ones)
    return missing + over(outside, pad_value * (2 * ones - channels))


def steps(w_words: Tensor) -> int:
    """K-steps of eight words."""
    return -(-w_words[0].numel() // 8)


def column_order(table: Tensor, block_n: int) -> Tensor:
    """[..., O] in the order of the columns of the MMA, which are the rows of `operand_order`."""
    run = min(block_n, 64) // 4
    return table.unflatten(-1, (-1, 4, run // 2, 2)).transpose(-3, -2).flatten(-4)


def operand_order(w_words: Tensor, block_n: int, per_step: bool) -> Tensor:
    """Int32 [O, kH, kW, words] as the kernels copy it to shared memory, block by block of `block_n` channels.

    Rows: of N = min(block_n, 64), row 8 j + 2 t + e is channel N / 4 t + 2 j + e, so that thread t of the accumulators has
    neighbouring channels. Words: k-step s of a group of two has at place (half h, thread t) word 4 t + 2 s + h of 16, a last
    single step 2 t + h of 8. For mma.sync groups are stored as [.., t, s, h], for wgmma (`per_step`) steps as [.., h, t].
    """
    run = min(block_n, 64) // 4
    outputs, count = len(w_words), w_words[0].numel()
    steps = -(-count // 8)
    groups = -(-steps // 2)
    flat = F.pad(w_words.reshape(outputs, count), (0, 16 * groups - count))
    rows = flat.view(-1, block_n // (4 * run), 4, run // 2, 2, groups, 16).permute(0, 1, 3, 2, 4, 5, 6)
    rows = rows.reshape(-1, block_n, groups, 4, 2, 2)  # ..., t, s, h
    if steps % 2:
        last = rows[:, :, -1:].reshape(-1, block_n, 1, 2, 4, 2)[:, :, :, 0]  # the first eight words as [t, h]
        last = torch.stack([last, torch.zeros_like(last)], 4)
        rows = torch.cat([rows[:, :, :-1], last], 2)
    if not per_step:
        return rows.transpose(1, 2).contiguous()
    return rows.permute(0, 2, 4, 1, 5, 3).flatten(1, 2)[:, :steps].contiguous()


def _inside(height: int, width: int, border: bool, device: torch.device) -> Tensor:
    """Bool [classes, kH, kW]: which taps are inside the image."""
    kind = torch.arange(BORDER_CLASSES if border else 1, device=device)[:, None]

    def axis(size, first):
        tap = torch.arange(size, device=device)
        return ~(((kind & first > 0) & (tap == 0)) | ((kind & 2 * first > 0) & (tap == size - 1)))

    return axis(height, 1)[:, :, None] & axis(width, 4)[:, None, :]


_operands = Derived(make_operands)


def operands(w_words: Tensor, threshold: Tensor | None, flip: Tensor | None, *options) -> Operands:
    """`make_operands(...)`, made once for these tensors."""
    tensors = [tensor for tensor in (w_words, threshold, flip) if tensor is not None]
    return _operands(tensors, (threshold is None, *options), w_words, threshold, flip, *options)
