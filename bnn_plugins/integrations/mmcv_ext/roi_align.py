"""RoIAlign (He et al., Mask R-CNN, ICCV 2017, arXiv:1703.06870, section 3) as two small matrix products per box.

A box is cut into ``ph x pw`` bins and each bin into a regular grid of samples; a sample is the bilinear interpolation
of the feature map at its point, and a bin is the mean or the maximum of its samples. Points form a product of rows and
columns, and bilinear interpolation is a product too, so with ``Wy`` the (samples x height) matrix of row weights and
``Wx`` the (samples x width) one of column weights, all samples of a box are ``Wy @ F @ Wx.T`` for every channel. For
the mean, the samples of a bin are averaged in ``Wy`` and ``Wx`` beforehand. The gradient is the transpose.

Rules kept from mmcv: coordinates are computed in the features' precision and in its order of operations; a point with
y < -1 or y > height (same for x) counts as a sample of value 0; elsewhere a point is clamped to the image. Half
precision is computed in float32. A NaN or infinite feature spoils every bin of the boxes whose samples reach around it.
"""

from contextlib import contextmanager

import torch
from torch import Tensor

from .dtypes import wide

_MAX_FLOOR = -10000.0  # where mmcv's CPU kernel starts its maximum: a bin without samples, or with all below it
_CHUNK = 64  # boxes whose weights are built at once


@contextmanager
def _plain_arithmetic(x: Tensor):
    """No graph, and no autocast: the products must not run in bfloat16 because the caller's convolutions do."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        yield


def _axis(start: Tensor, end: Tensor, bins: int, sampling_ratio: int, aligned: bool) -> tuple[Tensor, Tensor]:
    """Where the samples lie along one axis.

    Args:
        start, end: (N,) borders of the boxes in feature pixels, the half pixel already subtracted if aligned.

    Returns:
        tuple: coordinates (N, bins, G) with G the largest grid, and the number of samples per bin of each box, (N,).
    """
    length = end - start if aligned else (end - start).clamp(min=1)
    size = length / bins
    grid = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.float().ceil().to(size.dtype)
    cell = torch.arange(bins, device=size.device, dtype=size.dtype)[:, None]
    step = torch.arange(int(grid.max()), device=size.device, dtype=size.dtype) + 0.5
    start, size, divisor = start[:, None, None], size[:, None, None], grid.clamp(min=1)[:, None, None]
    return start + cell * size + step * size / divisor, grid.long()


def _taps(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two neighbours of every coordinate in [0, size) and their weights; weights are 0 outside [-1, size]."""
    inside = (at >= -1) & (at <= size)
    at = at.clamp(min=0)
    low = at.long().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = torch.where(low == size - 1, 0, at - low)
    return low, high, (1 - part) * inside, part * inside


def _weights(at: Tensor, grid: Tensor, size: int, mean: bool) -> tuple[Tensor, Tensor, Tensor]:
    """One axis as matrices.

    Args:
        at: (N, bins, G) coordinates, the first ``grid[n]`` of G count.
        size: height or width of the features.
        mean: average the samples of a bin, or keep them apart.

    Returns:
        tuple: weights (N, bins, size) if mean else (N, bins * G, size); the first and one past the last pixel that
        carry a weight, (N,) each; where none does, 0 and 1.
    """
    low, high, of_low, of_high = _taps(at, size)
    if mean:
        share = (torch.arange(at.size(2), device=at.device) < grid[:, None]) / grid.clamp(min=1)[:, None].to(at.dtype)
        of_low, of_high = of_low * share[:, None], of_high * share[:, None]
    else:
        low, high, of_low, of_high = (t.flatten(1)[..., None] for t in (low, high, of_low, of_high))
    weights = at.new_zeros(*low.shape[:2], size).scatter_add_(2, low, of_low).scatter_add_(2, high, of_high)
    pixel = torch.arange(size, device=at.device)
    used = (weights != 0).any(1)
    none = ~used.any(1)
    first = torch.where(used, pixel, size).amin(1).masked_fill(none, 0)
    last = torch.where(used, pixel + 1, 0).amax(1).masked_fill(none, 1)
    return weights, first, last


def _boxes(rois: Tensor, images: int, dtype: torch.dtype, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """(N, 5) -> image indices (N,) and boxes (N, 4) in feature pixels.

    Raises:
        ValueError: a box is not finite, has a negative size while aligned, or names an image that is not there.
    """
    rois = rois.to(dtype)
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    if not bool(rois.isfinite().all()):
        raise ValueError('RoIAlign: boxes must be finite numbers, some are NaN or infinite')
    if aligned and bool((boxes[:, 2:] < boxes[:, :2]).any()):
        raise ValueError('RoIAlign: with aligned=True boxes (x1, y1, x2, y2) need x2 >= x1 and y2 >= y1')
    image = rois[:, 0].long()
    if bool(((image < 0) | (image >= images)).any()):
        raise ValueError(f'RoIAlign: the first column of rois must be an index into the {images} images of the batch')
    return image, boxes


def _windows(rois: Tensor, shape: tuple[int, ...], pooled: tuple[int, int], dtype, options: dict):
    """What forward and backward go through: one entry per box that has samples.

    Args:
        shape: (B, C, H, W) of the features.
        pooled: (ph, pw).
        options: spatial_scale, sampling_ratio, aligned, mean.

    Yields:
        tuple: index of the box; its window (image, rows, columns) into (B, H, W, C); the weights of the rows and of the
        columns of that window, and the coordinates (ph, gy) and (pw, gx) of the samples.
    """
    image, boxes = _boxes(rois, shape[0], dtype, options['spatial_scale'], options['aligned'])
    for begin in range(0, len(boxes), _CHUNK):
        x1, y1, x2, y2 = boxes[begin : begin + _CHUNK].unbind(1)
        ys, grid_y = _axis(y1, y2, pooled[0], options['sampling_ratio'], options['aligned'])
        xs, grid_x = _axis(x1, x2, pooled[1], options['sampling_ratio'], options['aligned'])
        if not (ys.numel() and xs.numel()):
            continue  # every box of the chunk is empty
        wy, top, bottom = _weights(ys, grid_y, shape[2], options['mean'])
        wx, left, right = _weights(xs, grid_x, shape[3], options['mean'])
        spans = torch.stack((image[begin : begin + _CHUNK], top, bottom, left, right, grid_y, grid_x), 1).tolist()
        for n, (b, y_from, y_to, x_from, x_to, gy, gx) in enumerate(spans):
            if not (gy and gx):
                continue
            rows, columns = slice(y_from, y_to), slice(x_from, x_to)
            mine_y, mine_x = wy[n, :, rows], wx[n, :, columns]
            if not options['mean']:
                mine_y = mine_y.unflatten(0, (pooled[0], -1))[:, :gy].flatten(0, 1)
                mine_x = mine_x.unflatten(0, (pooled[1], -1))[:, :gx].flatten(0, 1)
            yield begin + n, (b, rows, columns), mine_y, mine_x, ys[n, :, :gy], xs[n, :, :gx]


def _forward_max(samples: Tensor, ys: Tensor, xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(ph * gy, pw * gx, C) samples -> the maximum of every bin and its coordinates, (ph, pw, C) each."""
    (ph, gy), (pw, gx) = ys.shape, xs.shape
    samples = samples.view(ph, gy, pw, gx, -1).transpose(1, 2).reshape(ph, pw, gy * gx, -1)
    value, best = samples.max(2)
    y = ys[torch.arange(ph, device=ys.device)[:, None, None], best // gx]
    x = xs[torch.arange(pw, device=xs.device)[:, None], best % gx]
    beaten = ~(value > _MAX_FLOOR) & ~value.isnan()
    return value.masked_fill(beaten, _MAX_FLOOR), y.masked_fill(beaten, -1), x.masked_fill(beaten, -1)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool every box to ``aligned_height x aligned_width`` bins.

    Args:
        input: (B, C, H, W).
        rois: (N, 5): image index, x1, y1, x2, y2 in image pixels; ``spatial_scale`` takes them to feature pixels.
        output: (N, C, ph, pw), written.
        argmax_y, argmax_x: (N, C, ph, pw), written when ``pool_mode`` is 0 (max): the sample that won, -1 if none did.
        sampling_ratio: samples per bin and axis; 0: one per feature pixel, rounded up.
        pool_mode: 0 max, 1 mean.
        aligned: subtract half a pixel from the box; without it, boxes below one feature pixel are widened to one.

    Raises:
        ValueError: a box is not finite, has a negative size while aligned, or names an image that is not there.
    """
    mean = pool_mode == 1
    options = {'spatial_scale': spatial_scale, 'sampling_ratio': sampling_ratio, 'aligned': aligned, 'mean': mean}
    with _plain_arithmetic(input):
        features = wide(input).permute(0, 2, 3, 1).contiguous()  # channels last: the products run over contiguous rows
        pooled = features.new_full((len(rois), aligned_height, aligned_width, input.size(1)), 0 if mean else _MAX_FLOOR)
        at_y, at_x = (torch.full_like(pooled, -1) for _ in 'yx') if not mean else (None, None)
        for n, window, wy, wx, ys, xs in _windows(rois, input.shape, pooled.shape[1:3], pooled.dtype, options):
            rows = torch.matmul(wx, features[window])  # (columns', width) @ (height, width, C)
            samples = torch.mm(wy, rows.flatten(1)).view(len(wy), len(wx), -1)
            if mean:
                pooled[n] = samples
            else:
                pooled[n], at_y[n], at_x[n] = _forward_max(samples, ys, xs)
        output.copy_(pooled.permute(0, 3, 1, 2))
        if not mean:
            argmax_y.copy_(at_y.permute(0, 3, 1, 2))
            argmax_x.copy_(at_x.permute(0, 3, 1, 2))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient by the features to ``grad_input`` (B, C, H, W); arguments as in :func:`roi_align_forward`.

    There is no gradient by the boxes.
    """
    with _plain_arithmetic(grad_output):
        if pool_mode == 0:
            _backward_max(grad_output, rois, argmax_y, argmax_x, grad_input)
            return
        options = {'spatial_scale': spatial_scale, 'sampling_ratio': sampling_ratio, 'aligned': aligned, 'mean': True}
        grads = wide(grad_output).permute(0, 2, 3, 1).contiguous()
        images, channels, height, width = grad_input.shape
        total = grads.new_zeros(images, height, width, channels)
        pooled = (aligned_height, aligned_width)
        for n, window, wy, wx, _, _ in _windows(rois, grad_input.shape, pooled, grads.dtype, options):
            rows = torch.mm(wy.T, grads[n].flatten(1)).unflatten(1, (aligned_width, channels))
            total[window] += torch.matmul(wx.T, rows)  # (width, pw) @ (height, pw, C)
        grad_input += total.permute(0, 3, 1, 2)


def _backward_max(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor) -> None:
    """Each bin's gradient goes to the four neighbours of the sample that won."""
    _, channels, height, width = grad_input.shape
    total = wide(grad_input).flatten()
    plane = torch.arange(channels, device=rois.device)
    for part in range(0, len(rois), _CHUNK):
        chunk = slice(part, part + _CHUNK)
        y, x, grad = (wide(t[chunk]) for t in (argmax_y, argmax_x, grad_output))
        grad = grad.masked_fill(y == -1, 0)  # the mark of 'no sample won'; mmcv's kernel reads it the same way
        start = (rois[chunk, :1].long() * channels + plane)[..., None, None] * (height * width)
        (y0, y1, wy0, wy1), (x0, x1, wx0, wx1) = _taps(y, height), _taps(x, width)
        for row, of_row in ((y0, wy0), (y1, wy1)):
            for column, of_column in ((x0, wx0), (x1, wx1)):
                total.index_add_(0, (start + row * width + column).flatten(), (grad * of_row * of_column).flatten())
    grad_input.copy_(total.view_as(grad_input))
