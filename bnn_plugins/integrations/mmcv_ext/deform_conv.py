"""Deformable convolutions, CARAFE and masked im2col, as sums over the taps of a filter.

Dai et al., Deformable Convolutional Networks, ICCV 2017, arXiv:1703.06211, eq. 2; with a mask: Zhu et al., Deformable
ConvNets v2, CVPR 2019, arXiv:1811.11168, eq. 1. Wang et al., CARAFE, ICCV 2019, arXiv:1905.02188, eq. 2.

Each backward is torch's own of the forward, computed again. A sample at a whole pixel has the derivative to its right and
below, as in mmcv; one a whole pixel outside of the image has none. Half precision is computed in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .dtypes import wide


def columns_of(x: Tensor, offset: Tensor, mask: Tensor | None, kernel: Sequence[int], stride: Sequence[int],
               padding: Sequence[int], dilation: Sequence[int], deform_groups: int) -> Tensor:
    """The samples under each tap: bilinear, outside of the image 0.

    Args:
        x: ``[N, C, H, W]``.
        offset: ``[N, 2 * G * K, H', W']`` in pixels, for each of the G deform groups and K taps (y, x). Where it is larger, as
            in mmdet's DyHead, mmcv reads the first numbers of each image as if they had this shape, and so does this.
        mask: ``[N, G * K, H', W']``, a factor of each sample; ``None`` for 1.

    Returns:
        Tensor: ``[N, C * K, H', W']``, the taps of a channel side by side.
    """
    images, channels, height, width = x.shape
    taps, groups = kernel[0] * kernel[1], deform_groups
    rows, columns = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in zip(
        (height, width), kernel, stride, padding, dilation, strict=True))
    offset = offset.flatten(1)[:, :2 * groups * taps * rows * columns].reshape(images, groups, taps, 2, rows, columns)
    i, j, p, q = (torch.arange(size, device=x.device) for size in (rows, columns, *kernel))
    p, q = (t.flatten()[:, None, None] for t in torch.meshgrid(p * dilation[0], q * dilation[1], indexing='ij'))
    at_y = (i * stride[0] - padding[0])[:, None] + p + offset[:, :, :, 0]  # [N, G, K, H', W']
    at_x = j * stride[1] - padding[1] + q + offset[:, :, :, 1]
    low_y, low_x = at_y.detach().floor(), at_x.detach().floor()

    pixels, total = x.reshape(images * groups, channels // groups, height * width), 0
    for dy in (0, 1):
        for dx in (0, 1):
            py, px = low_y + dy, low_x + dx
            inside = (py >= 0) & (py < height) & (px >= 0) & (px < width) & (at_y > -1) & (at_x > -1)
            share = (1 - (at_y - py) if dy == 0 else at_y - low_y) * (1 - (at_x - px) if dx == 0 else at_x - low_x) * inside
            index = (py.clamp(0, height - 1) * width + px.clamp(0, width - 1)).long()
            index = index.reshape(images * groups, 1, -1).expand(-1, pixels.shape[1], -1)
            total = total + pixels.gather(2, index) * share.reshape(images * groups, 1, -1)
    samples = total.reshape(images, groups, channels // groups, taps, rows * columns)
    if mask is not None:
        mask = mask.flatten(1)[:, :groups * taps * rows * columns]
        samples = samples * mask.reshape(images, groups, 1, taps, rows * columns)
    return samples.reshape(images, channels * taps, rows, columns)


def convolve(x: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None, stride, padding, dilation,
             groups: int, deform_groups: int) -> Tensor:
    """The deformable convolution ``[N, O, H', W']``; ``weight`` is ``[O, C / groups, kh, kw]``, ``bias`` ``[O]``."""
    samples = columns_of(x, offset, mask, weight.shape[2:], stride, padding, dilation, deform_groups)
    size = samples.shape[-2:]
    samples = samples.reshape(len(x), groups, -1, size.numel())
    out = (weight.reshape(groups, len(weight) // groups, -1) @ samples).reshape(len(x), len(weight), *size)
    return out if bias is None else out + bias[:, None, None]


def gradients(function, tensors: list[Tensor | None], grad: Tensor) -> list[Tensor | None]:
    """The gradients of ``function(*tensors)`` by its tensors, in float32 or wider."""
    with torch.enable_grad():
        leaves = [None if t is None else wide(t.detach()).requires_grad_() for t in tensors]
        given = [leaf for leaf in leaves if leaf is not None]
        found = iter(torch.autograd.grad(function(*leaves), given, wide(grad)))
    return [None if leaf is None else next(found) for leaf in leaves]


def _plain(g: dict):
    """mmcv's keyword arguments of a deformable convolution as those of :func:`convolve`."""
    def call(x, offset, weight):
        return convolve(x, offset, None, weight, None, (g['dH'], g['dW']), (g['padH'], g['padW']),
                        (g['dilationH'], g['dilationW']), g['group'], g['deformable_group'])
    return call


def _modulated(g: dict):
    def call(x, offset, mask, weight, bias):
        return convolve(x, offset, mask, weight, bias, (g['stride_h'], g['stride_w']), (g['pad_h'], g['pad_w']),
                        (g['dilation_h'], g['dilation_w']), g['group'], g['deformable_group'])
    return call


@torch.no_grad()
def deform_conv_forward(input, weight, offset, output, columns, ones, **geometry) -> None:
    """``output`` ``[N, O, H', W']`` is written; ``columns`` and ``ones`` are mmcv's working memory, not used here."""
    output.copy_(_plain(geometry)(wide(input), wide(offset), wide(weight)))


def deform_conv_backward_input(input, offset, grad_output, grad_input, grad_offset, weight, columns, **geometry) -> None:
    """``grad_input`` and ``grad_offset`` are written."""
    call = _plain(geometry)
    found = gradients(lambda x, at: call(x, at, wide(weight)), [input, offset], grad_output)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[1])


def deform_conv_backward_parameters(input, offset, grad_output, grad_weight, columns, ones, *, scale=1, **geometry) -> None:
    """``scale`` times the gradient is added to ``grad_weight``; the function is linear in the weights: any will do."""
    call = _plain(geometry)
    found = gradients(lambda weight: call(wide(input), wide(offset), weight), [grad_weight], grad_output)
    grad_weight.add_(found[0], alpha=scale)


@torch.no_grad()
def modulated_deform_conv_forward(input, weight, bias, ones, offset, mask, output, columns, *, with_bias, **geometry) -> None:
    """``output`` ``[N, O, H', W']`` is written; without a bias, ``bias`` is empty."""
    tensors = (wide(t) for t in (input, offset, mask, weight))
    output.copy_(_modulated(geometry)(*tensors, wide(bias) if with_bias else None))


def modulated_deform_conv_backward(input, weight, bias, ones, offset, mask, columns, grad_input, grad_weight, grad_bias,
                                   grad_offset, grad_mask, grad_output, *, with_bias, **geometry) -> None:
    """All ``grad_*`` but that of the output are written."""
    tensors = [input, offset, mask, weight, bias if with_bias else None]
    found = gradients(_modulated(geometry), tensors, grad_output)
    for grad, value in zip((grad_input, grad_offset, grad_mask, grad_weight, grad_bias), found, strict=True):
        if value is not None:
            grad.copy_(value)


def reassemble(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> Tensor:
    """CARAFE: each output pixel is a weighted sum of the window around its source pixel.

    Args:
        features: ``[N, C, H, W]``.
        masks: ``[N, group_size * kernel_size ** 2, s * H, s * W]``, the weights of the window.

    Returns:
        Tensor: ``[N, C, s * H, s * W]``.
    """
    (images, channels, height, width), groups, s = features.shape, group_size, scale_factor
    windows = F.unfold(features, kernel_size, padding=kernel_size // 2).reshape(images, groups, channels // groups, -1,
                                                                                height, width)
    masks = masks.reshape(images, groups, -1, height, s, width, s)
    return torch.einsum('ngckhw,ngkhawb->ngchawb', windows, masks).reshape(images, channels, height * s, width * s)


@torch.no_grad()
def carafe_naive_forward(features, masks, output, **options) -> None:
    """``output`` is written."""
    output.copy_(reassemble(wide(features), wide(masks), **options))


def carafe_naive_backward(grad_output, features, masks, grad_input, grad_masks, **options) -> None:
    """``grad_input`` and ``grad_masks`` are written."""
    found = gradients(lambda x, m: reassemble(x, m, **options), [features, masks], grad_output)
    grad_input.copy_(found[0])
    grad_masks.copy_(found[1])


def carafe_forward(features, masks, rfeatures, routput, rmasks, output, **options) -> None:
    """``output`` is written, and the features into ``rfeatures``, which is all that the backward is given of them."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, **options)


def carafe_backward(grad_output, rfeatures, masks, rgrad_output, rgrad_input_hs, rgrad_input, rgrad_masks, grad_input,
                    grad_masks, **options) -> None:
    """``grad_input`` and ``grad_masks`` are written."""
    carafe_naive_backward(grad_output, rfeatures, masks, grad_input, grad_masks, **options)


@torch.no_grad()
def masked_im2col_forward(im, mask_h_idx, mask_w_idx, col, *, kernel_h, kernel_w, pad_h, pad_w) -> None:
    """``col`` ``[C * kernel_h * kernel_w, M]`` gets the windows of the M places of one image ``[1, C, H, W]``."""
    padded = F.pad(im, (pad_w, pad_w, pad_h, pad_h))
    width = padded.shape[3] - kernel_w + 1
    col.copy_(F.unfold(padded, (kernel_h, kernel_w))[0][:, mask_h_idx * width + mask_w_idx])


@torch.no_grad()
def masked_col2im_forward(col, mask_h_idx, mask_w_idx, im, *, height, width, channels) -> None:
    """Column m of ``col`` ``[channels, M]`` goes to its place in ``im`` ``[1, channels, height, width]``."""
    im[0, :, mask_h_idx, mask_w_idx] = col
