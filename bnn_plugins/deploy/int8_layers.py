"""Real layers in int8: what :func:`bnn_plugins.quantize_rest_` puts in the place of convolutions and linear layers.

Weights are symmetric with one scale per output channel, :math:`w \\approx s_o q`, :math:`|q| \\le 127`; activations are uint8
with one scale and zero point for the tensor, chosen by calibration. Sums are exact integers, what follows is float32 in the
order of ``bnn_kernels.int8_reference``.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bnn_kernels

from ..convert.generic_rules import IMAGE_CHANNELS
from .packed import memory_format
from .rest_layer import Conv2dShape, ConvTranspose2dShape, LinearShape, RestLayer, per_channel, sums_of

UNSIGNED = 255
SYMMETRIC = 127


class Int8Layer(RestLayer):
    """What they share.

    Attributes:
        weight_int8: ``[O, C / groups, ...]``.
        scale: float32 ``[O]``, of the weight times that of the input.
        bias: float32 ``[O]``; zeros where the layer has none.
        input_scale, input_zero: float32 and uint8 ``[1]``.
    """

    kind = 'int8'

    @classmethod
    @torch.no_grad()
    def from_latent(cls, layer: nn.Module, input_scale: float = 1.0, input_zero: int = 0,
                    unit: Tensor | float = 1.0) -> Self:
        """The int8 form of a real layer, which stays as it is.

        Args:
            input_scale, input_zero: how its input is stored. The default is for layers that load theirs.
            unit: of the input, in those of the real layer's input.
        """
        rows = cls.rows(layer).float() * unit
        largest = rows.flatten(1).abs().amax(1)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / SYMMETRIC
        bias = layer._parameters['bias']
        int8 = super().from_latent(layer)
        int8._parameters.clear()
        int8.register_buffer('weight_int8', (rows / scale.view(-1, *[1] * (rows.dim() - 1))).round().to(torch.int8))
        int8.register_buffer('scale', scale * input_scale)
        int8.register_buffer('bias', torch.zeros_like(scale) if bias is None else bias.detach().float().clone())
        int8.register_buffer('input_scale', scale.new_full((1,), input_scale))
        int8.register_buffer('input_zero', torch.full_like(int8.input_scale, input_zero, dtype=torch.uint8))
        return int8

    @staticmethod
    def rows(layer: nn.Module) -> Tensor:
        """The weight with its output channels first."""
        return layer.weight

    def _quantized(self, x: Tensor) -> Tensor:
        return bnn_kernels.quantize(x, self.input_scale, self.input_zero)

    def _seen(self, x: Tensor) -> Tensor:
        """The values that it computes with, in float64."""
        return (self._quantized(x).double() - self.input_zero) * self.input_scale.double()

    def _steps(self) -> Tensor:
        """``[O]``: the steps of the weights."""
        return (self.scale / self.input_scale).double()

    def _epilogue(self) -> bnn_kernels.Epilogue:
        return bnn_kernels.Epilogue(self.scale, self.bias)

    def bound(self, layer: nn.Module, x: Tensor) -> Tensor:
        """:math:`\\sum |x - x_q| |w| + |x_q| s / 2`, with ``s`` the step of a weight."""
        seen, steps = self._seen(x), per_channel(self._steps(), layer)
        bound = sums_of(layer, layer.weight.abs(), (x.double() - seen).abs())
        return bound + sums_of(layer, 1.0, seen.abs()) * steps / 2


class Int8Conv2d(Conv2dShape, Int8Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']`` of the same dtype, in the memory format that an ``nn.Conv2d`` would return."""

    def forward(self, input: Tensor) -> Tensor:
        seen, (left, right, top, bottom) = input, self._reversed_padding_repeated_twice
        if self.padding_mode != 'zeros' or not symmetric(self):
            seen = F.pad(seen, (left, right, top, bottom), 'constant' if self.padding_mode == 'zeros' else self.padding_mode)
            left = top = 0
        _, y = bnn_kernels.int8_conv2d(self._quantized(seen), self.input_zero, self.weight_int8, self._epilogue(),
                                       stride=self.stride, padding=(top, left), dilation=self.dilation, groups=self.groups,
                                       dtype=input.dtype if input.is_floating_point() else torch.float32)
        return y.contiguous(memory_format=memory_format(input))


class Int8Pixels2d(Int8Conv2d):
    """A convolution of images, with the normalisation of their pixels folded in.

    ``[N, C, H, W]``, pixels in uint8 or normalised ones, -> ``[N, O, H', W']``. Normalised pixels are turned back, so that
    both give the same. Padding, which is 0 between normalised pixels, is the whole pixel that is nearest to the mean.

    Attributes:
        mean, std: float32 ``[C]``: the real layer reads ``(pixel - mean) / std``.
        input_zero: ``[C]``: the mean as a whole pixel.
    """

    kind = 'int8-pixels'

    @classmethod
    @torch.no_grad()
    def from_latent(cls, layer: nn.Conv2d, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> Self:
        mean, std = (torch.as_tensor(value, dtype=torch.float32, device=layer.weight.device).flatten().expand(
            layer.in_channels).clone() for value in (mean, std))
        int8 = super().from_latent(layer, unit=1 / std.view(-1, 1, 1))
        int8.register_buffer('mean', mean)
        int8.register_buffer('std', std)
        int8.input_zero = whole_pixels(mean)
        rest = (int8.weight_int8.double() * (int8.input_zero.double() - mean.double()).view(-1, 1, 1)).flatten(1).sum(1)
        int8.bias += (rest * int8.scale.double()).float()
        return int8

    @staticmethod
    def fits(layer: nn.Module, channels: int) -> bool:
        """Whether a real layer may read images of so many channels, or of one mean for all."""
        return isinstance(layer, nn.Conv2d) and layer.in_channels <= IMAGE_CHANNELS and channels in (1, layer.in_channels) \
            and layer.groups == 1 and layer.padding_mode == 'zeros' and symmetric(layer)

    def _quantized(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            return x
        return whole_pixels(x.float() * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1))

    def bound(self, layer: nn.Module, x: Tensor) -> Tensor:
        """As of other int8 layers, and of the padding."""
        mean, std = self.mean.double().view(-1, 1, 1), self.std.double().view(-1, 1, 1)
        pixels, outside = self._quantized(x).double() - mean, (self.input_zero.double().view(-1, 1, 1) - mean).abs()
        padding = (layer.weight.double().abs() * (outside / std) + outside * self._steps().view(-1, 1, 1, 1) / 2)
        return sums_of(layer, layer.weight.abs(), (x.double() - pixels / std).abs()) + sums_of(
            layer, 1.0, pixels.abs()) * per_channel(self._steps(), layer) / 2 + per_channel(padding.flatten(1).sum(1), layer)


def whole_pixels(x: Tensor) -> Tensor:
    return x.round().clamp(0, UNSIGNED).to(torch.uint8)


def symmetric(layer: nn.Conv2d) -> bool:
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return (left, top) == (right, bottom)


class Int8ConvTranspose2d(ConvTranspose2dShape, Int8Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']``, as :class:`Int8Conv2d`."""

    @staticmethod
    def rows(layer: nn.Module) -> Tensor:
        return bnn_kernels.transpose_weight(layer.weight, layer.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        _, y = bnn_kernels.int8_conv_transpose2d(
            self._quantized(input), self.input_zero, self.weight_int8, self._epilogue(), stride=self.stride,
            padding=self.padding, output_padding=self._added(input, output_size), dilation=self.dilation, groups=self.groups,
            dtype=input.dtype)
        return y.contiguous(memory_format=memory_format(input))


class Int8Linear(LinearShape, Int8Layer):
    """``[..., C]`` -> ``[..., O]`` of the same dtype."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self._quantized(input.reshape(-1, self.in_features))
        y = bnn_kernels.int8_linear(rows, self.input_zero, self.weight_int8, self._epilogue(), dtype=input.dtype)
        return y.view(*input.shape[:-1], self.out_features)


# By the very class: a subclass may compute something else.
INT8_CLASSES: dict[type[nn.Module], type[Int8Layer]] = {
    nn.Conv2d: Int8Conv2d, nn.ConvTranspose2d: Int8ConvTranspose2d, nn.Linear: Int8Linear}
PIXEL_CLASSES: dict[type[nn.Module], type[Int8Layer]] = {nn.Conv2d: Int8Pixels2d}
