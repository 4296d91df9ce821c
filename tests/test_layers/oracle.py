"""The convolution and the linear layer in float64 numpy, tap by tap."""

import numpy as np


def pad(x, kernel, padding, dilation, value):
    """Pad ``[N, C, H, W]`` with ``value``. ``padding``: a number, a pair, 'valid' or 'same' (the odd one at the end)."""
    pairs = []
    for axis in range(2):
        if padding == 'same':
            total = dilation[axis] * (kernel[axis] - 1)
            pairs.append((total // 2, total - total // 2))
        else:
            amount = 0 if padding == 'valid' else padding[axis]
            pairs.append((amount, amount))
    return np.pad(x, ((0, 0), (0, 0), *pairs), constant_values=value)


def conv2d(x, w, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, pad_value=0):
    """``[N, C, H, W]`` and ``[O, C / groups, kh, kw]`` -> ``[N, O, H', W']``."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    out_channels, per_group, kh, kw = w.shape
    x = pad(x, (kh, kw), padding, dilation, pad_value)
    height = (x.shape[2] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    width = (x.shape[3] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((len(x), out_channels, height, width))
    for o in range(out_channels):
        first = o // (out_channels // groups) * per_group
        for i in range(kh):
            for j in range(kw):
                rows = slice(i * dilation[0], i * dilation[0] + (height - 1) * stride[0] + 1, stride[0])
                columns = slice(j * dilation[1], j * dilation[1] + (width - 1) * stride[1] + 1, stride[1])
                out[:, o] += np.einsum('nchw,c->nhw', x[:, first:first + per_group, rows, columns], w[o, :, i, j])
    return out


def linear(x, w):
    return np.asarray(x, np.float64) @ np.asarray(w, np.float64).T


def accumulators(layer, levels, weight_levels):
    """What the integer arithmetic of ``layer`` must give, in float64."""
    levels, weight_levels = levels.detach().double().numpy(), weight_levels.detach().double().numpy()
    if weight_levels.ndim == 2:
        return linear(levels, weight_levels)
    return np.concatenate([conv2d(levels, basis, layer.stride, layer.padding, layer.dilation, layer.groups, layer.pad_value)
                           for basis in np.split(weight_levels, layer.bases)], 1)
