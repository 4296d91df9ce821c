"""What real layers have in common that :func:`bnn_plugins.quantize_rest_` puts in the place of others."""

import copy

import torch
from torch import Tensor, nn

from .packed import PackedModule


class RestLayer(PackedModule):
    """A real layer whose weight is stored in fewer bits than float32. Its buffers keep their dtypes in any model.

    Attributes:
        kind: what its weight and input are: the first word of its signature.
    """

    kind = ''

    def _apply(self, fn, recurse=True):
        """Scales and bias stay float32 whatever the dtype of the layers around: ``.to(torch.bfloat16)`` would round them."""
        before = {name: buffer for name, buffer in self._buffers.items() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def bound(self, layer: nn.Module, x: Tensor) -> Tensor:
        """How far the roundings of weight and input may take its output from that of the real layer, elementwise, in float64.

        Args:
            layer: the real layer. x: its input.
        """
        raise NotImplementedError

    def signature(self) -> str:
        return f'{self.kind} {self._shape()}'

    def _shape(self) -> str:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return self.signature()


class Conv2dShape:
    """``_shape`` of a convolution."""

    def _shape(self) -> str:
        return (f'conv {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride {tuple(self.stride)} '
                f'padding {self.padding} {self.padding_mode} dilation {tuple(self.dilation)} groups {self.groups}')


class ConvTranspose2dShape:
    """``_shape`` of a transposed convolution."""

    def _shape(self) -> str:
        return (f'conv_transpose {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride '
                f'{tuple(self.stride)} padding {tuple(self.padding)} output_padding {tuple(self.output_padding)} dilation '
                f'{tuple(self.dilation)} groups {self.groups}')

    def _added(self, input: Tensor, output_size: list[int] | None) -> list[int]:
        return nn.ConvTranspose2d._output_padding(self, input, output_size, self.stride, self.padding, self.kernel_size, 2,
                                                  self.dilation)


class LinearShape:
    """``_shape`` of a linear layer."""

    def _shape(self) -> str:
        return f'linear {self.in_features}->{self.out_features}'


def per_channel(values: Tensor, layer: nn.Module) -> Tensor:
    """``[O]`` as it is added to an output of the layer."""
    return values if isinstance(layer, LinearShape | nn.Linear) else values.view(-1, 1, 1)


def sums_of(layer: nn.Module, weight: Tensor | float, x: Tensor) -> Tensor:
    """What a real layer computes in float64 with another weight, and without a bias."""
    sums = copy.deepcopy(layer).double()
    sums._forward_hooks.clear()  # a copy has those of the caller
    sums._parameters['bias'] = None
    with torch.no_grad():
        sums.weight.copy_(torch.as_tensor(weight).expand_as(sums.weight))
    return sums(x.double())
