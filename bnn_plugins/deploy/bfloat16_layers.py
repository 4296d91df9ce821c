"""Real layers in bfloat16: products of bfloat16 values, summed up in float32 and rounded once; the bias is float32."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .rest_layer import Conv2dShape, ConvTranspose2dShape, LinearShape, RestLayer, per_channel, sums_of

ROUNDING = torch.finfo(torch.bfloat16).eps / 2  # of one value, relative


class Bfloat16Layer(RestLayer):
    """What they share.

    Attributes:
        weight: bfloat16, of a convolution in channels-last memory.
        bias: float32 ``[O]`` or ``None``.
    """

    kind = 'bfloat16'

    @classmethod
    @torch.no_grad()
    def from_latent(cls, layer: nn.Module) -> Self:
        """The form of a real layer, which stays as it is."""
        made = super().from_latent(layer)
        made._parameters.clear()
        order = torch.channels_last if layer.weight.dim() == 4 else torch.contiguous_format
        made.register_buffer('weight', layer.weight.detach().to(torch.bfloat16).contiguous(memory_format=order))
        bias = layer._parameters['bias']
        made.register_buffer('bias', None if bias is None else bias.detach().float().clone())
        return made

    def forward(self, input: Tensor, *more) -> Tensor:
        y = self._products(input.to(torch.bfloat16), *more).to(torch.promote_types(input.dtype, torch.float32))
        return (y if self.bias is None else y + per_channel(self.bias, self)).to(input.dtype)

    def _products(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def bound(self, layer: nn.Module, x: Tensor) -> Tensor:
        """:math:`4 \\cdot 2^{-8} \\sum |x| |w|`: both factors of each product are rounded, and so is the sum; the fourth is
        for sums of at most 2^16 terms in float32."""
        return 4 * (ROUNDING + ROUNDING**2) * sums_of(layer, layer.weight.abs(), x.abs())


class Bfloat16Conv2d(Conv2dShape, Bfloat16Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']`` of the same dtype."""

    def _products(self, x: Tensor) -> Tensor:
        return nn.Conv2d._conv_forward(self, x, self.weight, None)


class Bfloat16ConvTranspose2d(ConvTranspose2dShape, Bfloat16Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']`` of the same dtype."""

    def _products(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(x, self.weight, None, self.stride, self.padding, self._added(x, output_size), self.groups,
                                  self.dilation)


class Bfloat16Linear(LinearShape, Bfloat16Layer):
    """``[..., C]`` -> ``[..., O]`` of the same dtype."""

    def _products(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


# By the very class: a subclass may compute something else.
BFLOAT16_CLASSES: dict[type[nn.Module], type[Bfloat16Layer]] = {
    nn.Conv2d: Bfloat16Conv2d, nn.ConvTranspose2d: Bfloat16ConvTranspose2d, nn.Linear: Bfloat16Linear}
