r"""The recurrence of an LSTM over whole sequences: one step in plain torch, and a faster way for training.

.. math:: z_t = z^x_t + N_h(W_h\,\mathrm{sign}(h_{t-1} + \theta)), \quad (z_i, z_f, z_g, z_o) = z_t

.. math:: c_t = f c_{t-1} + i g, \qquad h_t = o \tanh(c_t)

Soft gates are sigmoids; binary ones are the step :math:`1_{z \ge 0}` with the gradient of the sigmoid. The candidate ``g`` is
the tanh, or the sign with the gradient of the tanh. In evaluation sigmoid and tanh are those of
:mod:`bnn_kernels.recurrence` (5e-7 from torch's), so that what is evaluated is what the packed cell computes, bit for bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bnn_kernels.recurrence import sigmoid, tanh

from ..binarize import FloatActivation, RSign, SignActivation
from ..binarize.estimators import TanhSign, sign

_STEP, _SIGN = TanhSign(0.5), TanhSign(1.0)


class _Exact(torch.autograd.Function):
    """The packed cell's sigmoid or tanh; the gradient follows from the value."""

    @staticmethod
    def forward(ctx, z: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        value = function(z)
        ctx.save_for_backward(value)
        ctx.is_tanh = function is tanh
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        value, = ctx.saved_tensors
        return grad * (1 - value.square() if ctx.is_tanh else value * (1 - value)), None


def gate(z: Tensor, hard: bool, exact: bool = False) -> Tensor:
    r"""A gate in {0, 1} or [0, 1]; the gradient is :math:`\sigma'(z) = (1 - \tanh^2(z / 2)) / 4` for both."""
    if hard:
        return (_STEP(z) + 1) / 2
    return _Exact.apply(z, sigmoid) if exact else z.sigmoid()


def squash(z: Tensor, exact: bool) -> Tensor:
    return _Exact.apply(z, tanh) if exact else z.tanh()


def lstm_step(z: Tensor, c: Tensor, hard: str, sign_candidate: bool, dim: int, exact: bool) -> tuple[Tensor, Tensor]:
    """``(h, c)`` from pre-activations ``i, f, g, o`` along ``dim`` and the cell state before; ``hard`` names binary gates.

    ``exact``: with the packed cell's sigmoid and tanh, which are for float32.
    """
    g = z.chunk(4, dim)[2]
    g = _SIGN(g) if sign_candidate else squash(g, exact)
    if hard == '':
        i, f, _, o = gate(z, False, exact).chunk(4, dim)
    else:
        i, f, _, o = (gate(part, name in hard, exact) for part, name in zip(z.chunk(4, dim), 'ifgo', strict=True))
    c = f * c + i * g
    return o * squash(c, exact), c


def lstm_scan(zx: Tensor, h: Tensor, c: Tensor, hidden, hard: str, sign_candidate: bool) -> tuple[Tensor, Tensor]:
    """All steps.

    Args:
        zx: pre-activations of the inputs with the bias, ``[T, N, 4 H]`` (``[T, N, 4 C, H, W]`` for maps).
        h, c: the state before, ``[N, H]``.
        hidden: the product of the hidden state, latent or packed.

    Returns:
        ``h`` and ``c`` after each step, ``[T, N, H]``.
    """
    binarized = hidden.binarized()
    if hidden.training and torch.is_grad_enabled() and not torch.compiler.is_compiling() and is_plain(hidden):
        return train_scan(zx, h, c, hidden, binarized, hard, sign_candidate)
    exact = not hidden.training and zx.dtype == torch.float32
    states, cells = [], []
    for z in zx.unbind(0):
        h, c = lstm_step(z + hidden(h, binarized), c, hard, sign_candidate, hidden.channel_dim, exact)
        states.append(h)
        cells.append(c)
    return torch.stack(states), torch.stack(cells)


def is_plain(hidden) -> bool:
    """Whether a latent product is a matrix product with one factor per unit, of real states or of signs with a threshold."""
    signs = type(hidden.activation) in (SignActivation, RSign) and not hidden.activation.standardize
    return (hidden.channel_dim == -1 and (signs or isinstance(hidden.activation, FloatActivation)) and hidden.gain is None
            and hidden.g_bits == 32 and hidden.norm_name != 'ln' and hidden.folded_scale is None
            and hidden.copy_shift is None and hidden.weight.dtype == torch.float32)


def train_scan(zx: Tensor, h: Tensor, c: Tensor, hidden, binarized: tuple[Tensor, Tensor | None], hard: str,
               sign_candidate: bool) -> tuple[Tensor, Tensor]:
    """:func:`lstm_scan` of a plain product with a backward pass of its own: autograd's steps take longer than the sums."""
    levels, scale = binarized
    factor = zx.new_ones(zx.shape[-1]) if scale is None else scale.expand(len(levels))
    if hidden.replicas > 1:  # each gate's filters are tiled by themselves
        levels, factor = (v.unflatten(0, (hidden.gates, -1)).repeat(1, hidden.replicas, *[1] * (v.ndim - 1)).flatten(0, 1)
                          if len(v) == len(hidden.weight) else v for v in (levels, factor))
    if hidden.norm_name == 'static':
        factor = factor * hidden.norm.factor()
    activation = hidden.activation
    estimator = None if activation.bits == 32 else activation.estimator
    shift = getattr(activation, 'shift', None)
    shift = zx.new_zeros(h.shape[-1]) if shift is None else shift
    return _Scan.apply(zx.float(), h.float(), c.float(), levels.float(), factor.float(), shift.float(), estimator, hard,
                       sign_candidate)


class _Scan(torch.autograd.Function):
    """``[T, N, 4H]``, states ``[N, H]``, levels ``[4H, H]``; the gates' sigmoids (tanh for ``g``) and the states are kept.

    Under autocast the products of the steps run in its dtype (levels are exact in it, sums are rounded), the rest in float32.
    """

    @staticmethod
    def forward(ctx, zx, h0, c0, levels, factor, shift, estimator, hard, sign_candidate):
        kind = zx.device.type
        product = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        with torch.autocast(kind, enabled=False):
            signs = _Signs(shift, estimator, product)
            gates, states, cells = torch.empty_like(zx), *(zx.new_empty(*zx.shape[:2], h0.shape[-1]) for _ in range(2))
            weight = levels.to(product).t().contiguous()
            h, c = h0, c0
            for z, a, next_h, next_c in zip(zx, gates, states, cells, strict=True):
                torch.addcmul(z, torch.mm(signs(h), weight).float(), factor, out=a)
                i, f, g, o = a.chunk(4, -1)
                for part in (a[:, :2 * h0.shape[-1]], o):
                    part.sigmoid_()
                g.tanh_()
                i, f, g, o = _values(i, f, g, o, hard, sign_candidate)
                torch.mul(f, c, out=next_c).addcmul_(i, g)
                torch.tanh(next_c, out=next_h).mul_(o)
                h, c = next_h, next_c
        ctx.save_for_backward(h0, c0, levels, factor, shift, gates, states, cells)
        ctx.options = signs, hard, sign_candidate, product
        ctx.set_materialize_grads(False)
        return states, cells

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states, grad_cells):
        h0, c0, levels, factor, shift, gates, states, cells = ctx.saved_tensors
        signs, hard, sign_candidate, product = ctx.options
        width = h0.shape[-1]
        dz = torch.empty_like(gates)
        weight = (levels * factor[:, None]).to(product)
        dh, dc, dshift = torch.zeros_like(h0), torch.zeros_like(c0), torch.zeros_like(shift)
        slope, tanh, one = torch.empty_like(gates[0]), torch.empty_like(c0), gates.new_ones(())
        for t in range(len(gates) - 1, -1, -1):
            if grad_states is not None:
                dh = dh + grad_states[t]
            if grad_cells is not None:
                dc = dc + grad_cells[t]
            a, (di, df, dg, do) = gates[t], dz[t].chunk(4, -1)
            torch.addcmul(a, a, a, value=-1, out=slope)
            g = a[:, 2 * width:3 * width]
            torch.addcmul(one, g, g, value=-1, out=slope[:, 2 * width:3 * width])
            i, f, g, o = _values(*a.chunk(4, -1), hard, sign_candidate)
            torch.tanh(cells[t], out=tanh)
            torch.mul(dh, tanh, out=do)
            dc = dc.addcmul(dh * o, 1 - tanh.square_())
            torch.mul(dc, g, out=di)
            torch.mul(dc, cells[t - 1] if t else c0, out=df)
            torch.mul(dc, i, out=dg)
            dz[t].mul_(slope)
            dc = dc * f
            dh = signs.backward(states[t - 1] if t else h0, torch.mm(dz[t].to(product), weight).float())
            if shift is not None and signs.estimator is not None:
                dshift += dh.sum(0)
        before = torch.cat([h0[None], states[:-1]])
        seen = signs(before).flatten(0, 1)
        outer = torch.mm(dz.flatten(0, 1).to(product).t(), seen).float()  # [4H, H]
        return dz, dh, dc, outer * factor[:, None], (outer * levels).sum(1), dshift, None, None, None


def _values(i: Tensor, f: Tensor, g: Tensor, o: Tensor, hard: str, sign_candidate: bool) -> tuple[Tensor, ...]:
    """Gate values from sigmoids and the tanh of the candidate."""
    i, f, o = ((a >= 0.5).to(a.dtype) if name in hard else a for name, a in (('i', i), ('f', f), ('o', o)))
    return i, f, sign(g) if sign_candidate else g, o


class _Signs:
    """``sign(h + shift)`` in the dtype of the products, and its gradient; the identity without an estimator."""

    def __init__(self, shift: Tensor, estimator, dtype: torch.dtype):
        self.shift, self.estimator, self.dtype = shift, estimator, dtype
        self.plus, self.minus = (shift.new_full((), v, dtype=dtype) for v in (1.0, -1.0))  # made on the device, not copied
        self.threshold = -shift

    def __call__(self, h: Tensor) -> Tensor:
        if self.estimator is None:
            return h.to(self.dtype)
        return torch.where(h >= self.threshold, self.plus, self.minus)

    def backward(self, h: Tensor, grad: Tensor) -> Tensor:
        surrogate = None if self.estimator is None else self.estimator.surrogate(h + self.shift)
        return grad if surrogate is None else grad.mul_(surrogate)
