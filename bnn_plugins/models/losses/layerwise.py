"""LWS-Det: each binary convolution is taught by the real one in its place."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.conv import convolve_levels
from ...registry import MODELS
from .distillation import DistillationLoss, Outputs


def norms(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Of what each position of ``conv`` reads: ``[N, C, H, W]`` -> ``[N, 1, H', W']``."""
    ones = x.new_ones(1, 1, *conv.kernel_size)
    sums = F.conv2d(x.square().sum(1, keepdim=True), ones, None, conv.stride, conv.padding, conv.dilation)
    return sums.clamp(min=1e-12).sqrt()


def products(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of the angles between filters and what they read, and their products; both ``[N, O, H', W']``."""
    if conv.groups != 1 or getattr(conv, 'bases', 1) != 1 or getattr(conv, 'pad_value', 0) != 0:
        raise ValueError(f'LayerwiseLoss takes convolutions of one group and one basis, padded with zeros, but got {conv}')
    scale = None
    if hasattr(conv, 'weight_binarizer'):
        x = conv.activation(x) * conv.activation.step
        weight, scale = conv.weight_binarizer(conv.weight)
        product = convolve_levels(conv, x, weight)
    else:
        weight = conv.weight
        product = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)
    lengths = weight.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1)
    return product / (norms(x, conv) * lengths), product if scale is None else product * scale.view(-1, 1, 1)


def binary_weight(conv: nn.Conv2d) -> Tensor:
    """Scale times signs, ``[O, C, kh, kw]``."""
    levels, scale = conv.weight_binarizer(conv.weight)
    return levels if scale is None else levels * scale.view(-1, 1, 1, 1)


@MODELS.register_module()
class LayerwiseLoss(DistillationLoss):
    r"""Angle and amplitude of each convolution: :math:`\overline{(\cos_T - \cos_S)^2}`,
    :math:`\overline{(a * w - \alpha\,\hat a * \hat w)^2}` and, of its weights alone,
    :math:`\overline{(w - \alpha\,\hat w)^2}`, weighted, mean over the layers.

    :math:`\cos = a * w / (\lVert a\rVert \lVert w\rVert)` of the teacher's inputs and weights, and of the student's binary
    ones; :math:`\alpha` is the student's scale. Means stand for the sums of the paper, which depend on the size of the image.
    The differentiable search of the binary weights is that of ``method='lwsdet'``; any other method can be taught, too.

    Source: Xu et al. 2021 (LWS-Det), CVPR, eq. 4-6. The layers are those of ``layers`` of student and teacher, in pairs.

    Args:
        angle, amplitude, reconstruction: weights of the three.

    Raises:
        ValueError: without layers, for layers that do not pair up, and for other convolutions than of one group.
    """

    def __init__(self, angle: float = 1.0, amplitude: float = 1.0, reconstruction: float = 0.0, weight: float = 1.0):
        super().__init__(weight)
        self.angle, self.amplitude, self.reconstruction = angle, amplitude, reconstruction

    def distance(self, student: Outputs, teacher: Outputs) -> Tensor:
        shapes = [[tuple(conv.weight.shape) for conv, _ in outputs.layers] for outputs in (student, teacher)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise ValueError(f'LayerwiseLoss compares convolutions in pairs, but layers of the student have the weights '
                             f'{shapes[0]} and those of the teacher {shapes[1]}')
        losses = []
        for (conv, x), (real, y) in zip(student.layers, teacher.layers, strict=True):
            (cosine, product), (real_cosine, real_product) = products(conv, x), products(real, y)
            losses.append(self.angle * F.mse_loss(cosine, real_cosine) + self.amplitude * F.mse_loss(product, real_product))
            if self.reconstruction:
                losses[-1] = losses[-1] + self.reconstruction * F.mse_loss(binary_weight(conv), real.weight)
        return torch.stack(losses).mean()
