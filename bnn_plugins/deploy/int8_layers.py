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

from .packed import PackedModule, memory_format

UNSIGNED = 255
SYMMETRIC = 127


class Int8Layer(PackedModule):
    """What they share.

    Attributes:
        weight_int8: ``[O, C / groups, ...]``.
        scale: float32 ``[O]``, of the weight times that of the input.
        bias: float32 ``[O]``; zeros where the layer has none.
        input_scale, input_zero: float32 and uint8 ``[1]``.
    """

    @classmethod
    @torch.no_grad()
    def from_latent(cls, layer: nn.Module, input_scale: float = 1.0, input_zero: int = 0) -> Self:
        """The int8 form of a real layer, which stays as it is.

        Args:
            input_scale, input_zero: how its input is stored. The default is for layers that load theirs.
        """
        rows = cls.rows(layer).float()
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

    def _apply(self, fn, recurse=True):
        """Scales and bias stay float32 whatever the dtype of the layers around: ``.to(torch.bfloat16)`` would round them."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved.dtype != torch.float32:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _quantized(self, x: Tensor) -> Tensor:
        return bnn_kernels.quantize(x, self.input_scale, self.input_zero)

    def _epilogue(self) -> bnn_kernels.Epilogue:
        return bnn_kernels.Epilogue(self.scale, self.bias)

    def signature(self) -> str:
        return f'int8 {self._shape()}'

    def _shape(self) -> str:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return self.signature()


class Int8Conv2d(Int8Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']`` of the same dtype, in the memory format that an ``nn.Conv2d`` would return."""

    def forward(self, input: Tensor) -> Tensor:
        seen, (left, right, top, bottom) = input, self._reversed_padding_repeated_twice
        if self.padding_mode != 'zeros' or (left, top) != (right, bottom):
            seen = F.pad(seen, (left, right, top, bottom), 'constant' if self.padding_mode == 'zeros' else self.padding_mode)
            left = top = 0
        _, y = bnn_kernels.int8_conv2d(self._quantized(seen), self.input_zero, self.weight_int8, self._epilogue(),
                                       stride=self.stride, padding=(top, left), dilation=self.dilation, groups=self.groups,
                                       dtype=input.dtype)
        return y.contiguous(memory_format=memory_format(input))

    def _shape(self) -> str:
        return (f'conv {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride {tuple(self.stride)} '
                f'padding {self.padding} {self.padding_mode} dilation {tuple(self.dilation)} groups {self.groups}')


class Int8ConvTranspose2d(Int8Layer):
    """``[N, C, H, W]`` -> ``[N, O, H', W']``, as :class:`Int8Conv2d`."""

    @staticmethod
    def rows(layer: nn.Module) -> Tensor:
        return bnn_kernels.transpose_weight(layer.weight, layer.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        output_padding = nn.ConvTranspose2d._output_padding(self, input, output_size, self.stride, self.padding,
                                                            self.kernel_size, 2, self.dilation)
        _, y = bnn_kernels.int8_conv_transpose2d(
            self._quantized(input), self.input_zero, self.weight_int8, self._epilogue(), stride=self.stride,
            padding=self.padding, output_padding=output_padding, dilation=self.dilation, groups=self.groups,
            dtype=input.dtype)
        return y.contiguous(memory_format=memory_format(input))

    def _shape(self) -> str:
        return (f'conv_transpose {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride '
                f'{tuple(self.stride)} padding {tuple(self.padding)} output_padding {tuple(self.output_padding)} dilation '
                f'{tuple(self.dilation)} groups {self.groups}')


class Int8Linear(Int8Layer):
    """``[..., C]`` -> ``[..., O]`` of the same dtype."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self._quantized(input.reshape(-1, self.in_features))
        y = bnn_kernels.int8_linear(rows, self.input_zero, self.weight_int8, self._epilogue(), dtype=input.dtype)
        return y.view(*input.shape[:-1], self.out_features)

    def _shape(self) -> str:
        return f'linear {self.in_features}->{self.out_features}'


# By the very class: a subclass may compute something else.
INT8_CLASSES: dict[type[nn.Module], type[Int8Layer]] = {
    nn.Conv2d: Int8Conv2d, nn.ConvTranspose2d: Int8ConvTranspose2d, nn.Linear: Int8Linear}


def int8_forms(model: nn.Module, layers: dict[str, str]) -> dict[nn.Module, Int8Layer]:
    """``{real layer: its int8 form}``, whatever its values, for those that ``layers``, ``{name: signature}``, say are int8."""
    return {module: INT8_CLASSES[type(module)].from_latent(module) for name, module in model.named_modules()
            if type(module) in INT8_CLASSES and layers.get(name, '').startswith('int8 ')}
