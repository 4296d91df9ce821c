"""Binary forms of mmcv's convolutions that pad their input or standardise their weight themselves. mmcv is not imported."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...deploy import PackedConv2d, register_packed
from ...layers import BinaryConv2d


class CoveringPadding:
    """Mixin of a convolution whose input is padded until it is covered, as TensorFlow's ``'same'`` (EfficientNet).

    What is padded are zeros before the sign, which is +1.
    """

    def padded(self, input: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride, dilation in reversed(list(zip(input.shape[2:], self.kernel_size, self.stride, self.dilation,
                                                                strict=True))):
            missing = max((-(-side // stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
            pads += [missing // 2, missing - missing // 2]
        return F.pad(input, pads) if any(pads) else input

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.padded(input))


class BinaryCoveringConv2d(CoveringPadding, BinaryConv2d):
    """Of ``mmcv.cnn.Conv2dAdaptivePadding``."""


@register_packed(BinaryCoveringConv2d)
class PackedCoveringConv2d(CoveringPadding, PackedConv2d):
    """The packed :class:`BinaryCoveringConv2d`."""

    def signature(self) -> str:
        return f'{super().signature()} covered'


class BinaryConvWS2d(BinaryConv2d):
    """Of ``mmcv.cnn.ConvWS2d``: the signs are those of the standardised weight (Qiao et al. 2019, arXiv 1903.10520).

    Attributes:
        eps (float): added to the deviation of a filter.
    """

    eps = 1e-5
    same_attributes = ('eps',)

    def standardised(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        column = (-1, *[1] * (weight.ndim - 1))
        return (weight - rows.mean(1).view(column)) / (rows.std(1).view(column) + self.eps)

    @property
    def filters(self) -> Tensor:
        return self.standardised(self.weight)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | None = None) -> Tensor:
        return super()._convolve(input, self.standardised(weight), bias, factor)


class BinaryConvAWS2d(BinaryConvWS2d):
    """Of ``mmdet``'s and ``mmcv``'s ``ConvAWS2d``, which scales and shifts the standardised weight (Qiao et al. 2020,
    DetectoRS, arXiv 2006.02334).

    Attributes:
        weight_gamma, weight_beta (Tensor): ``[O, 1, 1, 1]``, of the float checkpoint.
    """

    same_attributes = ()

    def _init_binary(self, *args, **kwargs) -> None:
        self.register_buffer('weight_gamma', torch.ones_like(self.weight[:, :1, :1, :1]))
        self.register_buffer('weight_beta', torch.zeros_like(self.weight_gamma))
        super()._init_binary(*args, **kwargs)

    def standardised(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        column = (-1, *[1] * (weight.ndim - 1))
        standard = (weight - rows.mean(1).view(column)) / torch.sqrt(rows.var(1) + self.eps).view(column)
        return self.weight_gamma * standard + self.weight_beta


register_packed(BinaryConvWS2d)(PackedConv2d)
register_packed(BinaryConvAWS2d)(PackedConv2d)
FORMS = {'Conv2dAdaptivePadding': BinaryCoveringConv2d, 'ConvWS2d': BinaryConvWS2d, 'ConvAWS2d': BinaryConvAWS2d}
