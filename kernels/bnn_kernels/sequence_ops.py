"""The public operators of recurrent networks and Transformers, registered like those of ops.py."""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks
from .layout import pack_bits
from .ops import _define, _register, pack_activations
from .recurrence import Recurrence


def pack_normalized(x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None = None) -> Tensor:
    """Signs of normalized features as words: LayerNorm and sign in one comparison per value.

    With statistics per token, sign(g (x - mean) / std + b) is x >= mean + std * threshold for threshold = -b / g where g > 0,
    and x <= mean + std * threshold, ties included, where g < 0 (`flip`). Where g = 0 use a threshold of -inf for b >= 0, +inf
    otherwise. Product and sum are float32 and rounded one by one.

    Args:
        x: float32, float16 or bfloat16 `[..., C]`.
        mean, std: float32 `[...]`, one per row; std = sqrt(var + eps).
        threshold: float32 `[C]`. flip: bool `[C]`; None flips none.

    Returns:
        int32 `[..., words]`. Raises TypeError for a wrong dtype, ValueError for wrong shapes and devices.

    Example:
        >>> x, norm = torch.randn(2, 5, 40), nn.LayerNorm(40)
        >>> mean, std = x.mean(-1), (x.var(-1, unbiased=False) + norm.eps).sqrt()
        >>> pack_normalized(x, mean, std, torch.zeros(40)).shape
        torch.Size([2, 5, 2])
    """
    return _pack_normalized(x, mean, std, threshold, flip)


def binary_lstm(x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor | None = None, cell: Tensor | None = None,
                lengths: Tensor | None = None, *, pack: bool = False,
                keep: bool = True) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """The recurrence of a binary LSTM over whole sequences: XNOR sums of the hidden bits, gates, cell, next bits.

    The arithmetic is in `recurrence.py`. With D = 2 directions the second one runs backwards in time. The input part comes
    from one `binary_linear` for all steps: `binary_linear(x_words, wx_words, features).unflatten(-1, (D, -1))` with the rows
    of `wx_words` sorted by direction, then gate.

    Args:
        x: int32 `[T, N, D, 4 I]`, sums of the input, or float32, a finished input part (any norm, a bias per sample, ...).
            I = O or P; gates i, f, g, o.
        w_words: int32 `[D, 4 O, words of P]` from `pack_features(weight)`: rows sorted by gate. O divides P: unit u of a gate
            reads accumulator u % O, which is expanding-and-shrinking with P / O = tau^2 replicas; everybody else has O = P.
        recurrence: scales, bias, threshold, gates and candidate.
        h_words: int32 `[D, N, words]`, the bits before the first step; None is all -1.
        cell: float32 `[D, N, P]`, the cell before the first step, or int8 for one that saturates, where gates are 'binary' and
            the candidate is 'sign'; None is 0 in float32.
        lengths: int64 `[N]`, steps of each sequence (0 ... T, others are clamped): its outputs behind are 0, words included,
            its state is that after its last step, and the second direction starts there. None: all T.
        pack, keep: whether the words and the real h of every step are wanted.

    Returns:
        h float32 `[T, N, D, P]`: h.flatten(2) is the output of `nn.LSTM`.
        words int32 `[T, N, D, words of P]`: the bits of every step; None for the one that is not wanted.
        h_words, cell: the state after the last step, as above.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, unknown gates or candidate, nothing wanted, different devices.
        RuntimeError: as `binary_conv2d`.

    Example:
        >>> x_words = pack_features(torch.randn(100, 8, 512))
        >>> wx_words, wh_words = pack_features(torch.randn(4 * 64, 512)), pack_features(torch.randn(1, 4 * 64, 64))
        >>> sums = binary_linear(x_words, wx_words, 512).unflatten(-1, (1, -1))
        >>> scales = torch.full((1, 4 * 64), 0.05)
        >>> h, words, h_words, cell = binary_lstm(sums, wh_words, Recurrence(scale=scales, scale_x=scales))
        >>> h.shape, cell.shape
        (torch.Size([100, 8, 1, 64]), torch.Size([1, 8, 64]))
    """
    scale, *others = recurrence
    if h_words is None or cell is None:
        directions, batch, units = w_words.shape[0], x.shape[1] if x.dim() > 1 else 0, scale.shape[-1] // 4
        if h_words is None:
            h_words = w_words.new_zeros(directions, batch, w_words.shape[-1])
        if cell is None:
            cell = torch.zeros(directions, batch, units, device=x.device)
    h, words, h_last, cell_last = _binary_lstm(x, w_words, scale, *others, h_words, cell, lengths, pack, keep)
    return h if keep else None, words if pack else None, h_last, cell_last


def binary_attention(q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, limit: Tensor, *,
                     rule: str | Sequence[str] = 'bool', table: Tensor | None = None, scale: Tensor | None = None,
                     mask_words: Tensor | None = None) -> Tensor:
    """Attention on bits: XNOR scores, one integer threshold per row and plane, AND sums of the values; no N x M floats.

    Rules and arithmetic are in `attention.py`.

    Args:
        q_words: int32 `[B, N, heads, words of d]`, k_words: int32 `[B, M, heads, words of d]`, from `pack_heads`.
        v_words: int32 `[B, heads, V, words of M]`, values packed along the keys, from `pack_values`.
        head_dim: d, signs of a query.
        limit: float64 `[planes, heads]`: for 'bool' the score that is enough (1 for S > 0), for 'max_relative' the distance
            to the row's best score that is still enough, for 'elastic' the probability that must be exceeded (a / 2).
        rule: 'bool', 'max_relative' or 'elastic', for all planes or one for each.
        table: for 'elastic': `attention_table(score_scale, head_dim)`.
        scale: float32 `[planes, heads]`, what the sums of each plane are multiplied with; None with one plane leaves them
            int32.
        mask_words: int32 `[B or 1, N or 1, words of M]`, `pack_mask` of a bool mask: True takes part, as in
            `F.scaled_dot_product_attention`. None masks nothing.

    Returns:
        int32 `[B, N, heads, V]`, 2 popcount(a & v) - popcount(a), or with `scale` float32. `flatten(2)` joins the heads.

    Raises:
        TypeError: a wrong dtype. ValueError: wrong shapes, an unknown rule, a missing table or scale, different devices.
        RuntimeError: as `binary_conv2d`.

    Example:
        >>> q, k, v = pack_heads(torch.randn(1, 16, 256), 4), pack_heads(torch.randn(1, 9, 256), 4), torch.randn(1, 9, 256)
        >>> limit = torch.ones(1, 4, dtype=torch.float64)
        >>> binary_attention(q, k, pack_values(v, 4), head_dim=64, limit=limit).shape
        torch.Size([1, 16, 4, 64])
    """
    rules = [rule] * (limit.shape[0] if limit.dim() else 1) if isinstance(rule, str) else list(rule)
    return _binary_attention(q_words, k_words, v_words, head_dim, rules, limit, table, scale, mask_words)


def pack_heads(x: Tensor, heads: int, threshold: Tensor | None = None) -> Tensor:
    """Signs of queries or keys: float `[B, N, heads * d]`, threshold `[heads * d]`, to int32 `[B, N, heads, words of d]`.

    Raises TypeError: not floating point. ValueError: other shapes, heads that do not divide the features.

    Example:
        >>> pack_heads(torch.randn(2, 16, 160), heads=4).shape
        torch.Size([2, 16, 4, 2])
    """
    return pack_activations(_image(x).transpose(1, 2), threshold, heads).squeeze(2).unflatten(-1, (heads, -1))


def pack_values(x: Tensor, heads: int, threshold: Tensor | None = None) -> Tensor:
    """Signs of values, packed along the tokens: float `[B, M, heads * V]`, threshold `[heads * V]`, to int32
    `[B, heads, V, words of M]`. Raises as `pack_heads`.

    Example:
        >>> pack_values(torch.randn(2, 16, 160), heads=4).shape
        torch.Size([2, 4, 40, 1])
    """
    checks.pack_activations(_image(x).transpose(1, 2), threshold, heads)
    if threshold is not None:
        x = x - threshold  # exact as a comparison: x - t >= 0 where x >= t, subnormal differences included
    return pack_activations(_image(x)).squeeze(2).unflatten(1, (heads, -1))


def pack_mask(mask: Tensor) -> Tensor:
    """Bool `[B or 1, N or 1, M]`, or `[B, M]` for all queries alike, to the `mask_words` of `binary_attention`.

    Raises TypeError: not bool. ValueError: other dimensions.

    Example:
        >>> pack_mask(torch.tensor([[True, True, False]]))
        tensor([[[3]]], dtype=torch.int32)
    """
    if mask.dim() not in (2, 3):
        raise ValueError(f'pack_mask takes a mask [B, M] or [B or 1, N or 1, M], got {list(mask.shape)}.')
    return pack_bits(mask[:, None] if mask.dim() == 2 else mask)


def _image(x: Tensor) -> Tensor:
    if x.dim() != 3:
        raise ValueError(f'pack_heads and pack_values take x [B, N, heads * d], got {list(x.shape)}.')
    return x.unsqueeze(-1)


def _empty_lstm(call):
    dtypes = torch.float32, torch.int32, torch.int32, call['cell'].dtype
    return tuple(torch.empty(shape, dtype=dtype, device=call['x'].device)
                 for shape, dtype in zip(checks.binary_lstm(**call), dtypes, strict=True))


def _empty_attention(call):
    return torch.empty(checks.binary_attention(**call), device=call['q_words'].device,
                       dtype=torch.int32 if call['planes'].scale is None else torch.float32)


_pack_normalized = _register('Tensor x, Tensor mean, Tensor std, Tensor threshold, Tensor? flip', checks.pack_normalized)
_binary_lstm = _define(
    'Tensor x, Tensor w_words, Tensor scale, Tensor? scale_x, Tensor? bias, Tensor? threshold, float? eps, str gates, '
    'str candidate, str readout, str feedback, Tensor h_words, Tensor cell, Tensor? lengths, bool pack, bool keep',
    checks.binary_lstm, _empty_lstm, '(Tensor, Tensor, Tensor, Tensor)')
_binary_attention = _define(
    'Tensor q_words, Tensor k_words, Tensor v_words, SymInt head_dim, str[] rules, Tensor limit, Tensor? table, '
    'Tensor? scale, Tensor? mask_words', checks.binary_attention, _empty_attention)
