"""The formulas of the papers in numpy, written without a look at ``bnn_plugins.binarize``.

Each weight formula takes latents ``w`` ``[O, ...]`` and the gradient ``g`` that the binary weight ``W_b = scale * levels``
receives, and returns ``(levels, scale, dw)``, and a dict of the gradients of learned parameters where there are some. Each
activation formula takes ``x`` and the gradient ``g`` of the value (level times step) and returns ``(levels, dx)``.
"""

import numpy as np


def sign(x):
    return np.where(np.asarray(x) < 0, -1.0, 1.0)


# ---- surrogate gradients: name -> formula of (x, ...) ----------------------------------------------------------------------


def ede_factors(progress, t_min=0.1, t_max=10.0):
    """IR-Net: t = Tmin * 10^(p log10(Tmax / Tmin)), k = max(1 / t, 1)."""
    t = t_min ** (1 - progress) * t_max**progress
    return t, max(1 / t, 1)


def ede(x, progress=0.0, t_min=0.1, t_max=10.0):
    t, k = ede_factors(progress, t_min, t_max)
    return k * t / np.cosh(np.minimum(np.abs(t * x), 300)) ** 2


def approx_sign(x):
    return np.where(x < -1, 0, np.where(x < 0, 2 + 2 * x, np.where(x < 1, 2 - 2 * x, 0)))


def clipped(x, clip=1.0):
    return ((x >= -clip) & (x <= clip)).astype(float)


def swish_sign(x, beta=5.0):
    """Derivative of 2 s(bx) (1 + bx (1 - s(bx))) - 1 with the logistic function s; BNN+ eq. 4."""
    u = np.clip(beta * x, -600, 600)
    s, c = 1 / (1 + np.exp(-u)), 1 / (1 + np.exp(u))
    return beta * 2 * (s * c * (1 + u * c) + s * (c - u * s * c))


def soft_sign(x, beta=1.0):
    return beta / (1 + beta * np.abs(x)) ** 2


def tanh(x, beta=1.0):
    return beta / np.cosh(np.minimum(np.abs(beta * x), 300)) ** 2


def training_aware(x, progress=0.0, t_min=1e-2, t_max=10.0, activation=False):
    """RBNN: k (sqrt(2) t - t^2 |x|) where that is positive; activations have k = 1 and t >= 1."""
    t, k = ede_factors(progress, t_min, t_max)
    if activation:
        t, k = max(t, 1), 1
    return k * np.where(np.abs(x) < np.sqrt(2) / t, np.sqrt(2) * t - t**2 * np.abs(x), 0)


SURROGATES = {'ste': np.ones_like, 'clipped_ste': clipped, 'approx_sign': approx_sign, 'ede': ede, 'swish_sign': swish_sign,
              'soft_sign': soft_sign, 'tanh': tanh, 'training_aware': training_aware}


# ---- weights ---------------------------------------------------------------------------------------------------------------


def along(values, w):
    """``[O]`` or ``[1]`` next to ``w``, ``[O, ...]``."""
    return np.reshape(values, (-1,) + (1,) * (w.ndim - 1))


def filter_axes(w):
    return tuple(range(1, w.ndim))


def sign_weight(w, g):
    return sign(w), None, g


def hard_binary(w, g):
    """Liu's HardBinaryConv: the gradient is not multiplied by alpha."""
    return sign(w), np.abs(w).mean(filter_axes(w)), g * clipped(w)


def xnor(w, g):
    """Exact gradient: alpha 1{|W| <= 1} g + sign(W)/n sum(g sign(W)), then through the clip and the centring."""
    centred = w - w.mean(1, keepdims=True) if w.shape[1] > 1 else w
    clip = np.clip(centred, -1, 1)
    n = w[0].size
    alpha = np.abs(clip).mean(filter_axes(w))
    s = sign(clip)
    d = along(alpha, w) * clipped(clip) * g + s / n * (g * s).sum(filter_axes(w), keepdims=True)
    d = d * clipped(centred)
    return s, alpha, d - d.mean(1, keepdims=True) if w.shape[1] > 1 else d


def dorefa(w, g, w_bits=1, **_):
    if w_bits == 1:
        return sign(w), np.abs(w).mean().reshape(1), g
    top = 2**w_bits - 1
    t = np.tanh(w)
    m = np.abs(t).max()
    levels = 2 * np.round(top * (t / (2 * m) + 0.5)) - top
    # W_b = 2 q(u) - 1 with the identity through q, u = t / 2m + 1/2.
    dt = g / m
    peak = np.unravel_index(np.abs(t).argmax(), t.shape)
    dt[peak] -= (g * t).sum() / m**2 * np.sign(t[peak])
    return levels, np.array([1 / top]), dt * (1 - t**2)


def standardise(w, factor=1.0, inside=0.0, beside=0.0, lost=1):
    """``factor * (w - mean) / (sqrt(var + inside) + beside)`` per filter, the variance over n - ``lost``; and the way back."""
    axes, n = filter_axes(w), w[0].size - lost
    centred = w - w.mean(axes, keepdims=True)
    root = np.sqrt((centred**2).sum(axes, keepdims=True) / n + inside)
    out = factor * centred / (root + beside)

    def back(d):
        d = factor * d
        dc = d / (root + beside) - centred * (d * centred).sum(axes, keepdims=True) / ((root + beside) ** 2 * root * n)
        return dc - dc.mean(axes, keepdims=True)

    return out, back


def irnet(w, g, progress=0.0, **ede_range):
    w_hat, back = standardise(w)
    scale = 2.0 ** np.round(np.log2(np.abs(w_hat).mean(filter_axes(w))))
    return sign(w_hat), scale, back(along(scale, w) * g * ede(w_hat, progress, **ede_range))


def recu_tau(progress, tau_min=0.85, tau_max=0.99):
    """tau = A e^p + B, through (0, tau_min) and (1, tau_max)."""
    return tau_min + (tau_max - tau_min) * np.expm1(progress) / np.expm1(1)


def recu(w, g, alpha, progress=0.0):
    w1, back = standardise(w, 2 * np.sqrt(2), inside=1e-5)
    bound = -np.abs(w1).mean() * np.log(2 - 2 * recu_tau(progress))
    dw = back(along(alpha, w) * g * clipped(w1, bound))
    return sign(np.clip(w1, -bound, bound)), alpha, dw, dict(alpha=(g * sign(w1)).sum(filter_axes(w)))


def clipped_sign(w, g):
    return sign(w), None, g * clipped(w)


def matrix_shape(n):
    """(a, b) with a b = n, a <= b, closest to a square."""
    return min(((a, n // a) for a in range(1, n + 1) if n % a == 0 and a * a <= n), key=lambda ab: ab[1] - ab[0])


def rbnn(w, g, alpha, theta, left, right, progress=0.0):
    """W_3 = W_2 + |sin theta| (R_1^T W_2 R_2 - W_2) filter by filter; the gradient goes through all of it."""
    w2, back = standardise(w)
    d2, mixed, dtheta = np.zeros_like(w2), np.zeros_like(w2), np.zeros(len(w))
    d3 = along(alpha, w) * g
    for o in range(len(w)):
        x = w2[o].reshape(len(left), len(right))
        s = abs(np.sin(theta[o]))
        y = x + s * (left.T @ x @ right - x)
        mixed[o] = y.reshape(w[o].shape)
        dy = (d3[o] * training_aware(mixed[o], progress)).reshape(x.shape)
        d2[o] = ((1 - s) * dy + s * left @ dy @ right.T).reshape(w[o].shape)
        dtheta[o] = (dy * (left.T @ x @ right - x)).sum() * np.cos(theta[o]) * np.sign(np.sin(theta[o]))
    return sign(mixed), alpha, back(d2), dict(alpha=(g * sign(mixed)).sum(filter_axes(w)), theta=dtheta)


def rebnn(w, g, alpha, flips):
    """Loss + gamma / 2 ||W - alpha b||^2 with gamma = clip(flip ratio max|g|, 1e-5, 2e-4)."""
    b, a = sign(w), np.abs(alpha)
    gamma = np.clip(flips * np.abs(g).max(filter_axes(w)), 1e-5, 2e-4)
    error = w - along(a, w) * b
    dw = along(a, w) * g * clipped(w) + along(gamma, w) * error
    da = (g * b).sum(filter_axes(w)) - gamma * (error * b).sum(filter_axes(w))
    return b, a, dw, dict(alpha=da * np.sign(alpha))


def lwsdet(w, g, alpha):
    """The gradient of the expected choice between -1 and +1 under the softmax of two scores, whose difference is w."""
    scores = np.exp(np.stack([np.zeros_like(w), w]))
    minus, plus = scores / scores.sum(0)
    return sign(w), np.abs(alpha), along(np.abs(alpha), w) * g * 2 * plus * minus, dict(
        alpha=(g * sign(w)).sum(filter_axes(w)) * np.sign(alpha))


def bnext(w, g, progress=0.0, until=0.3):
    """clip(W / T, -1, 1), T from 1 to 1e-7 until the given share of the training, then the sign."""
    if progress >= until:
        return sign(w), None, g
    return np.clip(w / 1e-7 ** (progress / until), -1, 1), None, g


def bnfree(w, g, gain):
    hat, back = standardise(w, beside=1e-5, lost=0)
    root = np.sqrt(w[0].size)
    hat = hat / root
    magnitude = np.abs(hat).mean(filter_axes(w))
    dw = back(along(gain, w) * g * clipped(hat) / root)
    return sign(hat), gain * magnitude, dw, dict(gain=magnitude * (g * sign(hat)).sum(filter_axes(w)))


def centred_rows(w, g):
    """BinaryViT: the sign of w minus the mean of its filter, the scale of w itself; convolutions are not centred."""
    if w.ndim > 2:
        return hard_binary(w, g)
    levels, _, d = hard_binary(w - w.mean(1, keepdims=True), g)
    return levels, np.abs(w).mean(1), d - d.mean(1, keepdims=True)


def centred_layer(w, g):
    """BiT: the sign of w minus the mean of the layer, the identity as gradient, the scale of w itself; convolutions are not
    centred."""
    mean = w.mean() if w.ndim == 2 else 0.0
    return sign(w - mean), np.abs(w).mean().reshape(1), g - (g.mean() if w.ndim == 2 else 0.0)


def two_bases(w, g, gains):
    """BinaryDM, two bases: w_b = s1 b1 + s2 b2, b1 = sign(w), b2 = sign(w - s1 b1), s = gain * mean magnitude."""
    rest, levels, scale, dw, dgains = w, [], [], 0, []
    for gain, received in zip(gains, (g[:len(w)], g[len(w):]), strict=True):
        magnitude, basis = per_row(np.abs(rest).mean, rest), sign(rest)
        s = (gain * magnitude).reshape(-1, *[1] * (w.ndim - 1))
        dw = dw + s * clipped(rest) * received
        dgains.append(magnitude * per_row((received * basis).sum, w))
        levels.append(basis)
        scale.append(s.reshape(-1))
        rest = rest - s * basis
    return np.concatenate(levels), np.concatenate(scale), dw, dict(gains=np.stack(dgains))


def per_row(reduce, w):
    return reduce(axis=tuple(range(1, w.ndim)))


WEIGHTS = {'binaryconnect': sign_weight, 'binarynet': sign_weight, 'xnor': xnor, 'xnorpp': clipped_sign, 'dorefa': dorefa,
           'bireal': hard_binary, 'irnet': irnet, 'rbnn': rbnn, 'recu': recu, 'reactnet': hard_binary, 'bidm': hard_binary,
           'adambnn': hard_binary,
           'rebnn': rebnn, 'lwsdet': lwsdet, 'real2binary': clipped_sign, 'bnext': bnext, 'bnfree': bnfree,
           'binaryvit': centred_rows, 'bit': centred_layer, 'binarydm': two_bases}


# ---- activations -----------------------------------------------------------------------------------------------------------


def float_activation(x, g):
    return x, g


def clipped_activation(x, g):
    return sign(x), g * clipped(x)


def approx_activation(x, g):
    return sign(x), g * approx_sign(x)


def ede_activation(x, g, progress=0.0):
    return sign(x), g * ede(x, progress)


def dorefa_activation(x, g, a_bits=1, **_):
    return np.round((2**a_bits - 1) * np.clip(x, 0, 1)), g * ((x >= 0) & (x <= 1))


def recu_activation(x, g):
    """Division by sqrt(var + 1e-5) of each sample (no centring), then ApproxSign."""
    axes, n = filter_axes(x), x[0].size
    centred = x - x.mean(axes, keepdims=True)
    r = np.sqrt((centred**2).sum(axes, keepdims=True) / (n - 1) + 1e-5)
    d = g * approx_sign(x / r)
    return sign(x), d / r - centred / ((n - 1) * r**3) * (d * x).sum(axes, keepdims=True)


def rbnn_activation(x, g, rows, progress=0.0):
    """(x - mean) / unbiased deviation of each sample, or of each row of features."""
    axes = (-1,) if rows else filter_axes(x)
    centred = x - x.mean(axes, keepdims=True)
    n = np.prod([x.shape[axis] for axis in axes]) - 1
    r = np.sqrt((centred**2).sum(axes, keepdims=True) / n)
    d = g * training_aware(centred / r, progress, activation=True)
    d = d / r - centred / (n * r**3) * (d * centred).sum(axes, keepdims=True)
    return sign(centred), d - d.mean(axes, keepdims=True)


def wide_clipped_activation(x, g):
    return sign(x), g * clipped(x, 1.5)


def lsq_activation(x, g, bits=4):
    """LSQ, k bits in two's complement, with the step of normally distributed inputs."""
    low, high = -2 ** (bits - 1), 2 ** (bits - 1) - 1
    u = x / np.float64(np.float32(2 * np.sqrt(2 / np.pi) / np.sqrt(high)))
    return np.round(np.clip(u, low, high)), g * ((u >= low) & (u <= high))


ACTIVATIONS = {'binaryconnect': float_activation, 'binarynet': clipped_activation, 'xnor': clipped_activation,
               'xnorpp': clipped_activation, 'dorefa': dorefa_activation, 'bireal': approx_activation, 'irnet': ede_activation,
               'rbnn': rbnn_activation, 'recu': recu_activation, 'reactnet': approx_activation, 'bidm': approx_activation,
               'adambnn': approx_activation,
               'rebnn': approx_activation, 'lwsdet': approx_activation,
               'real2binary': clipped_activation, 'bnext': wide_clipped_activation,
               'bnfree': approx_activation, 'binaryvit': approx_activation, 'bit': clipped_activation,
               'binarydm': lsq_activation}
