"""Packed convolutions over sequences and videos, and transposed ones: the operators for images compute them."""

from collections.abc import Sequence

import torch
from torch import Tensor

import bnn_kernels

from ..layers import BinaryConv1d, BinaryConv3d, BinaryConvTranspose2d
from ..layers.conv import added_outputs, transpose_levels
from .packed import (
    PackedConv,
    PackedLayer,
    convolve_words,
    filter_sums,
    levels_dtype,
    memory_format,
    method_text,
    register_packed,
)


@register_packed(BinaryConv1d)
class PackedConv1d(PackedConv):
    """The packed :class:`BinaryConv1d`, a convolution of height 1. ``[N, C, L]`` -> ``[N, O, L']``."""

    has_bytes = False

    @staticmethod
    def _as_images(filters: Tensor) -> Tensor:
        return filters.unsqueeze(2)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        return super()._weight(dtype).squeeze(2)

    def _pack(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        return bnn_kernels.pack_activations(x.unsqueeze(2), threshold, self.groups)

    def _plane_sums(self, w: Tensor) -> Tensor:
        return filter_sums(w, self._fan()).view(-1, 1)

    def _binary(self, words: Tensor, w: Tensor, pad_value: int) -> Tensor:
        return convolve_words(words, w, self._fan() * self.groups, (1, *self.stride),
                              (*self._reversed_padding_repeated_twice, 0, 0), (1, *self.dilation), self.groups,
                              pad_value).squeeze(2)


@register_packed(BinaryConv3d)
class PackedConv3d(PackedConv):
    """The packed :class:`BinaryConv3d`, for each step in time of its kernel a convolution of all images at once.
    ``[N, C, D, H, W]`` -> ``[N, O, D', H', W']``."""

    has_bytes = False

    @staticmethod
    def _as_images(filters: Tensor) -> Tensor:
        return filters.permute(2, 0, 1, 3, 4).flatten(0, 1)

    def _weight(self, dtype: torch.dtype) -> Tensor:
        by_base = [plane.unflatten(0, (self.kernel_size[0], -1)).permute(1, 2, 0, 3, 4)
                   for plane in super()._weight(dtype).chunk(self.bases)]
        return torch.cat(by_base)

    def _pack(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        images = x.transpose(1, 2)  # [N, D, C, H, W]
        return bnn_kernels.pack_activations(images.flatten(0, 1), threshold, self.groups).unflatten(0, images.shape[:2])

    def _plane_sums(self, w: Tensor) -> Tensor:
        return filter_sums(w, self._fan()).view(self.kernel_size[0], -1).sum(0, dtype=torch.int32).view(-1, 1, 1, 1)

    def _binary(self, words: Tensor, w: Tensor, pad_value: int) -> Tensor:
        *pads, before, after = self._reversed_padding_repeated_twice
        if pad_value and before + after:
            blank = words.new_full((1, self._fan() * self.groups, *words.shape[2:4]), pad_value, dtype=torch.float32)
            blank = self._pack(blank.unsqueeze(2), None).expand(len(words), 1, *words.shape[2:])
            words = torch.cat([*[blank] * before, words, *[blank] * after], 1)
            before = after = 0
        (taps, *_), (stride, *strides), (dilation, *dilations) = self.kernel_size, self.stride, self.dilation
        images, channels = words.shape[1], self._fan() * self.groups
        steps = (images + before + after - dilation * (taps - 1) - 1) // stride + 1
        acc = None
        for tap, filters in enumerate(w.unflatten(0, (taps, -1))):
            offset = tap * dilation - before  # of the image that the first step reads
            first = max(-(offset // stride), 0)
            last = min((images - 1 - offset) // stride + 1, steps)
            if first >= last:
                continue
            seen = words[:, first * stride + offset:(last - 1) * stride + offset + 1:stride]
            sums = convolve_words(seen.flatten(0, 1), filters, channels, strides, pads, dilations, self.groups, pad_value)
            sums = sums.unflatten(0, seen.shape[:2])
            if acc is None:
                acc = sums.new_zeros(len(words), steps, *sums.shape[2:])
            acc[:, first:last] += sums
        if acc is None:  # every tap of every step reads padding of zeros
            sums = convolve_words(words[:, 0], filters, channels, strides, pads, dilations, self.groups, pad_value)
            acc = sums.new_zeros(len(words), steps, *sums.shape[1:])
        return acc.transpose(1, 2)


@register_packed(BinaryConvTranspose2d)
class PackedConvTranspose2d(PackedLayer):
    """The packed :class:`BinaryConvTranspose2d`; activations that are no signs are summed up in float32, which is exact.
    ``[N, C, H, W]`` -> ``[N, O, H', W']``."""

    channel_dim, pad_value = 1, 0

    def _fan(self) -> int:
        return self.in_channels // self.groups

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = added_outputs(self, input, output_size)
        if self.activation.bits == 32:
            return self._epilogue(input, transpose_levels(self, input, self._weight(input.dtype), extra))
        acc = self._accumulate(input, extra)
        return self._epilogue(input, acc.to(levels_dtype(self.activation, input), memory_format=memory_format(input)))

    def _accumulate(self, x: Tensor, output_padding: Sequence[int] | None = None) -> Tensor:
        extra = self.output_padding if output_padding is None else output_padding
        if not self.activation.signed:
            levels = self.activation(x).float()
            return transpose_levels(self, levels, self._weight(levels.dtype), extra).to(torch.int32)
        words = bnn_kernels.pack_activations(self.activation.prepare(x), self.activation.threshold(), self.groups)
        return self._joined([bnn_kernels.binary_conv_transpose2d(words, w, self.in_channels, self.stride, self.padding, extra,
                                                                 self.dilation, self.groups) for w in self.weight_bits])

    def signature(self) -> str:
        return (f'transposed conv {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride '
                f'{tuple(self.stride)} padding {tuple(self.padding)} output_padding {tuple(self.output_padding)} dilation '
                f'{tuple(self.dilation)} groups {self.groups} method {method_text(self.method)}')

    def extra_repr(self) -> str:
        return f'{self.signature()}, weight bits {self.w_bits}'
