"""The operators of sequences in plain torch, exact and obvious; see reference.py."""

import torch
from torch import Tensor

from . import attention
from .attention import Planes
from .layout import pack_bits, unpack_bits, unpack_signs
from .recurrence import Recurrence, step


def pack_normalized(x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
    """Float `[..., C]` to int32 `[..., words]`; see `bnn_kernels.pack_normalized`."""
    level = mean[..., None] + std[..., None] * threshold
    bits = x.float() >= level
    return pack_bits(bits if flip is None else torch.where(flip, x.float() <= level, bits))


def binary_lstm(x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor, lengths: Tensor | None,
                pack: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h `[T, N, D, P]`, words `[T, N, D, words]`, h_words `[D, N, words]`, cell `[D, N, P]`; see `bnn_kernels.binary_lstm`."""
    steps, batch, directions, _ = x.shape
    units = cell.shape[-1]
    h = torch.zeros(steps, batch, directions, units, device=x.device)
    bits = torch.zeros_like(h, dtype=torch.bool)
    lengths = torch.full((batch,), steps, device=x.device) if lengths is None else lengths.clamp(0, steps)
    rows = torch.arange(batch, device=x.device)
    last_bits, last_cell = unpack_bits(h_words, units), cell.to(torch.float32, copy=True)
    for d in range(directions):
        weight, own = unpack_signs(w_words[d], units), recurrence.direction(d)
        for s in range(steps):
            runs = s < lengths
            time = torch.where(runs, s if d == 0 else lengths - 1 - s, 0)
            signs = last_bits[d].float() * 2 - 1
            with torch.autocast(x.device.type, enabled=False):
                sums = (signs @ weight.t()).to(torch.int32).unflatten(-1, (4, -1))
            result = step(x[time, rows, d].unflatten(-1, (4, -1)), sums, last_cell[d], cell.dtype == torch.int8, own)
            h[time[runs], rows[runs], d], bits[time[runs], rows[runs], d], last_cell[d, runs] = (r[runs] for r in result)
            last_bits[d, runs] = result[1][runs]
    nothing = h.new_empty(0)
    return (h if keep else nothing, pack_bits(bits) if pack else nothing.int(), pack_bits(last_bits), last_cell.to(cell.dtype))


def binary_attention(q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                     mask_words: Tensor | None) -> Tensor:
    """Int32 or float32 `[B, N, heads, V]`; see `bnn_kernels.binary_attention`."""
    rules, limit, table, scale = planes
    keys = k_words.shape[1]
    q, k = (unpack_signs(words, head_dim).transpose(1, 2) for words in (q_words, k_words))  # [B, heads, tokens, d]
    v = unpack_signs(v_words, keys)
    unmasked = torch.ones(1, 1, 1, keys, dtype=torch.bool, device=q.device)
    if mask_words is not None:
        unmasked = unpack_bits(mask_words, keys)[:, None]
    with torch.autocast(q.device.type, enabled=False):
        m = (head_dim - q @ k.transpose(-1, -2)).long() // 2
        bits = torch.stack([attention.bits(m, unmasked, rule, row, table, head_dim)
                            for rule, row in zip(rules, limit, strict=True)])
        sums = (bits.float() @ v.transpose(-1, -2)).to(torch.int32).transpose(2, 3)  # [planes, B, N, heads, V]
    if scale is None:
        return sums[0].contiguous()
    y = sums[0].float() * scale[0, :, None]
    for plane in range(1, len(limit)):
        y = y + sums[plane].float() * scale[plane, :, None]
    return y.contiguous()
