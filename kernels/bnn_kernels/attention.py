"""Attention on bits without softmax: what becomes of a probability binarizer, and its integer arithmetic.

With m_ij = popcount(q_i ^ k_j), a score is S_ij = d - 2 m_ij for head dimension d. All rules compare a row of scores with one
number per row and plane, so the attention is a bit, A_ij = m_ij - base_i < n_i over the keys that are not masked:

    rule            the bit                       base_i      n_i
    'bool'          S_ij >= limit                 0           floor((d - limit) / 2) + 1
    'max_relative'  S_ij >= max_j S_ij - limit    min_j m_ij  floor(limit / 2) + 1
    'elastic'       softmax(scale S)_ij > limit   min_j m_ij  how many entries of the table exceed limit * sum_j e_ij

where e_ij = table[m_ij - min_j m_ij], the exponentials of `attention_table` in units of 2**-30: their sum over a row is an
exact integer whatever the order, and the comparison is one float64 product. A row without keys attends to nothing.

Values are V = +-1, so plane p gives O_p = 2 popcount(a_p & v) - popcount(a_p), and several planes
y = float(O_0) * scale_0;  y = y + float(O_p) * scale_p, each operation rounded by itself.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RULES = ('bool', 'max_relative', 'elastic')
TABLE_ONE = 2**30  # what exp(0) is in a table


class Planes(NamedTuple):
    """How scores become bits, plane by plane, and what each plane counts.

    Attributes:
        rules: one of RULES per plane.
        limit: float64 `[planes, heads]`, of the rule.
        table: int32 `[heads or 1, head_dim + 1]` from `attention_table` for the rule 'elastic', else None.
        scale: float32 `[planes, heads]` of the sums; None with one plane leaves them integers.
    """

    rules: tuple[str, ...]
    limit: Tensor
    table: Tensor | None = None
    scale: Tensor | None = None


def attention_table(scale: Tensor | float, head_dim: int) -> Tensor:
    """Exponentials of score differences for the rule 'elastic': int32 `[heads, head_dim + 1]`, entry m is exp(-2 m scale).

    Args:
        scale: `[heads]`, or one number for all (then heads is 1, and the table serves any number of heads): what scores are
            multiplied with before the softmax, at least 0; alpha_q * alpha_k / sqrt(head_dim).
        head_dim: d.

    Raises:
        ValueError: a negative scale, or one that is not finite: fold the sign into the queries.

    Example:
        >>> attention_table(0.5, head_dim=2)
        tensor([[1073741824,  395007542,  145315154]], dtype=torch.int32)
    """
    scale = torch.as_tensor(scale, dtype=torch.float64).detach().reshape(-1, 1)
    if not bool(((scale >= 0) & (scale < float('inf'))).all()):
        raise ValueError('attention_table takes finite scales of at least 0: fold a negative sign into the queries.')
    steps = torch.arange(head_dim + 1, dtype=torch.float64, device=scale.device)
    return torch.exp(-2 * scale * steps).mul_(TABLE_ONE).round_().to(torch.int32)


def bits(m: Tensor, keys: Tensor, rule: str, limit: Tensor, table: Tensor | None, head_dim: int) -> Tensor:
    """The attention bits of one plane by the module's table.

    Args:
        m: int64 `[B, heads, N, M]`. keys: bool, broadcastable to it: False is masked. limit: float64 `[heads]`.

    Returns:
        bool `[B, heads, N, M]`.
    """
    limit = limit[:, None, None]
    if rule == 'bool':
        return keys & (m < torch.floor((head_dim - limit) / 2) + 1)
    m = m - torch.where(keys, m, head_dim).amin(-1, keepdim=True)
    if rule == 'max_relative':
        return keys & (m < torch.floor(limit / 2) + 1)
    assert table is not None, 'as the checks require'
    rows = table[:, None].long().expand(m.shape[1], m.shape[2], -1).expand(len(m), -1, -1, -1)
    total = torch.where(keys, rows.gather(-1, m.clamp(0, head_dim)), 0).sum(-1, keepdim=True)
    over = rows.double() > limit * total.double()  # [B, heads, N, head_dim + 1]
    return keys & (m < over.sum(-1, keepdim=True))
