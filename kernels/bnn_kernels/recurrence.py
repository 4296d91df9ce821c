"""A step of the binary LSTM after its integer sums, and its arithmetic: the one place that says in which order.

Gates stand in torch's order i, f, g, o, P units each. With D directions, O accumulators per gate (O divides P) and integer
sums S_h[k][u % O] of the hidden bits with the weights of gate k, unit u, every operation is IEEE float32 and rounded by
itself, without FMA contraction, so that all backends agree bit for bit:

    zx = float(x[k][u % I]);   zx = zx * scale_x[k][u];   zx = zx + bias[k][u]        scale_x and bias optional, I is O or P
    zh = float(S_h[k][u % O]);  zh = (zh - mean_k) * rstd_k                            with eps only, see `statistics`
    z  = zx + zh * scale[k][u]
    i  = sigmoid(z_i)    | z_i >= 0 ('binary_if', 'binary')        f the same; o: z_o >= 0 in 'binary' only
    g  = tanh(z_g)       | +1 where z_g >= 0, else -1 ('sign')
    c  = f * c;  c = c + i * g
    c  = min(max(c, -127), 127)                                    with an int8 cell only
    h  = o * tanh(c)     | o * c ('cell')
    bit = h >= threshold[u]  | o = 1 and c >= threshold[u] ('and')  what the next step, and the next binary layer, reads

Where gates are 'binary' and the candidate is 'sign' the cell is an integer: a float32 that counts without end, or an int8 that
saturates. With readout 'cell' and feedback 'and' nothing real is left. For `c > t` give the next float above t as threshold.

`sigmoid` and `tanh` are polynomials with a reciprocal by Newton's iteration, 5e-7 from the exact functions at most, relative
and absolute: tanh(c) has the sign of c and sigmoid is never 0, so h has the sign of c.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GATES = ('soft', 'binary_if', 'binary')
CANDIDATES = ('tanh', 'sign')
READOUTS = ('tanh', 'cell')
FEEDBACKS = ('h', 'and')
CELL_LIMIT = 127  # of the int8 cell

ROUND = 12582912.0  # 1.5 * 2**23: adding it to |x| < 2**22 leaves round(x) in the last bits of the mantissa
LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4  # n * LN2_HIGH is exact for |n| < 2**12
EXP = (0.00831247779523844, 0.04189055063729718, 0.1666711631480337, 0.49999228820964164, 1.0, 1.0)  # highest power first
SIGMOID_LIMIT = 80.0
TANH_LIMIT = 8.2
TANH_ABOVE = (1.4840558508376359e-08, 2.1637274216358567e-05, 0.0035566862207405915, 0.1343212282719945, 0.9999999917359085)
TANH_BELOW = (8.370603986532087e-07, 0.0003386440989432317, 0.026108298066108204, 0.46765448565907247, 1.0)  # of x * x
RECIPROCAL = 0x7EF311C7  # minus the bits of d: within 13 % of 1 / d for normal d


class Recurrence(NamedTuple):
    """Parameters of a binary LSTM's steps, float32, D directions with P units; the gates of a vector are i, f, g, o.

    Attributes:
        scale: `[D, 4 P]`, of the sums of the hidden bits: the static scale and the weight of the norm in one.
        scale_x, bias: `[D, 4 P]` or None, applied to the input part; leave both None where it comes scaled.
        threshold: `[D, P]`, of the bit that is fed back; None is 0.
        eps: LayerNorm over each gate of the hidden sums before `scale`, with this epsilon; None normalizes nothing.
        gates: 'soft', 'binary_if' (i and f are bits) or 'binary' (i, f and o).
        candidate: 'tanh' or 'sign'.
        readout: h = o * tanh(c) for 'tanh', o * c for 'cell'.
        feedback: the bit is that of h for 'h', of the open cell for 'and', which needs binary gates.
    """

    scale: Tensor
    scale_x: Tensor | None = None
    bias: Tensor | None = None
    threshold: Tensor | None = None
    eps: float | None = None
    gates: str = 'soft'
    candidate: str = 'tanh'
    readout: str = 'tanh'
    feedback: str = 'h'

    def direction(self, number: int) -> 'Recurrence':
        """That of one direction: `scale`, `scale_x` and `bias` `[4, P]`, `threshold` `[P]`."""
        scale, scale_x, bias = (None if v is None else v[number].view(4, -1) for v in (self.scale, self.scale_x, self.bias))
        threshold = None if self.threshold is None else self.threshold[number]
        return self._replace(scale=scale, scale_x=scale_x, bias=bias, threshold=threshold)


def step(x: Tensor, sums: Tensor, cell: Tensor, saturate: bool,
         recurrence: Recurrence) -> tuple[Tensor, Tensor, Tensor]:
    """One step by the module's formula.

    Args:
        x: int32 or float32 `[N, 4, I]`, the input part. sums: int32 `[N, 4, O]`. cell: float32 `[N, P]`.
        saturate: whether the cell is an int8 one.
        recurrence: of one direction.

    Returns:
        h float32 `[N, P]`, bits bool `[N, P]`, the next cell float32 `[N, P]`.
    """
    scale, scale_x, bias, threshold, eps, gates, candidate, readout, feedback = recurrence
    zx = replicate(x.float(), scale.shape[-1])
    zx = zx if scale_x is None else zx * scale_x
    zx = zx if bias is None else zx + bias
    zh = sums.float()
    if eps is not None:
        mean, rstd = statistics(sums, eps)
        zh = (zh - mean) * rstd
    z_i, z_f, z_g, z_o = (zx + replicate(zh, zx.shape[-1]) * scale).unbind(-2)
    i, f = (sigmoid(z) if gates == 'soft' else (z >= 0).float() for z in (z_i, z_f))
    g = tanh(z_g) if candidate == 'tanh' else (z_g >= 0).float() * 2 - 1
    o = (z_o >= 0).float() if gates == 'binary' else sigmoid(z_o)
    cell = f * cell + i * g
    if saturate:
        cell = cell.clamp(-CELL_LIMIT, CELL_LIMIT)
    h = o * (tanh(cell) if readout == 'tanh' else cell)
    tau = 0 if threshold is None else threshold
    return h, h >= tau if feedback == 'h' else (o == 1) & (cell >= tau), cell


def statistics(sums: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and reciprocal deviation over the last dimension of int32 sums, from exact integers, in float32."""
    count, total, squares = sums.shape[-1], sums.long().sum(-1, keepdim=True), sums.long().square().sum(-1, keepdim=True)
    variance = (count * squares - total * total).double() / (float(count) * count)
    return (total.double() / count).float(), (1 / (variance + eps).sqrt()).float()


def replicate(x: Tensor, units: int) -> Tensor:
    """`[..., 4, I]` to `[..., 4, units]`: unit u is that of u % I."""
    return x.repeat(*[1] * (x.dim() - 1), units // x.shape[-1])


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) of float32 as every backend computes it; no NaN. For evaluation: it has no useful gradient."""
    x = x.clamp(-SIGMOID_LIMIT, SIGMOID_LIMIT)
    return _reciprocal(_exp(0 - x) + 1)


def tanh(x: Tensor) -> Tensor:
    """tanh of float32 as every backend computes it; no NaN. For evaluation: it has no useful gradient."""
    x = x.clamp(-TANH_LIMIT, TANH_LIMIT)
    square = x * x
    return x * _horner(square, TANH_ABOVE) * _reciprocal(_horner(square, TANH_BELOW))


def _exp(x: Tensor) -> Tensor:
    shifted = x * LOG2_E + ROUND
    n = shifted - ROUND
    r = x - n * LN2_HIGH
    r = r - n * LN2_LOW
    return (_horner(r, EXP).view(torch.int32) + (shifted.view(torch.int32) << 23)).view(torch.float32)


def _reciprocal(d: Tensor) -> Tensor:
    y = (RECIPROCAL - d.view(torch.int32)).view(torch.float32)
    for _ in range(3):
        y = y * (2 - d * y)
    return y


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        y = y * x + coefficient
    return y
