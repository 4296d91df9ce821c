"""Binary forms of diffusers' convolutions over videos. diffusers is not imported."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...deploy import PackedConv3d, register_packed
from ...layers import BinaryConv3d


class CausalPadding:
    """Mixin of a convolution that repeats the first image and pads the sides itself, all before the sign."""

    def padded(self, input: Tensor) -> Tensor:
        earlier = input[:, :, :1].repeat(1, 1, self.temporal_pad, 1, 1)
        return F.pad(torch.cat([earlier, input], 2), (*self.spatial_pad, 0, 0), mode=self.pad_mode)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.padded(input))


class BinaryCausalConv3d(CausalPadding, BinaryConv3d):
    """Of ``CosmosCausalConv3d``."""

    same_attributes = ('temporal_pad', 'spatial_pad', 'pad_mode')


@register_packed(BinaryCausalConv3d)
class PackedCausalConv3d(CausalPadding, PackedConv3d):
    """The packed :class:`BinaryCausalConv3d`."""

    def signature(self) -> str:
        return f'{super().signature()} causal {self.temporal_pad} {self.spatial_pad} {self.pad_mode}'


class ZerosBefore:
    """Mixin of a convolution that puts images of before, or zeros, in front of a video and zeros at its sides, all before the
    sign."""

    def forward(self, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        *sides, before, after = self._padding
        if cache_x is not None and before:
            x = torch.cat([cache_x.to(x.device), x], 2)
            before -= cache_x.shape[2]
        return super().forward(F.pad(x, (*sides, before, after)))


class BinaryConv3dAfterZeros(ZerosBefore, BinaryConv3d):
    """Of ``WanCausalConv3d`` (the models with ``QwenImageCausalConv3d`` count their layers of that class at each call)."""

    same_attributes = ('_padding',)


@register_packed(BinaryConv3dAfterZeros)
class PackedConv3dAfterZeros(ZerosBefore, PackedConv3d):
    """The packed :class:`BinaryConv3dAfterZeros`."""

    def signature(self) -> str:
        return f'{super().signature()} after zeros {self._padding}'


class WritesTo:
    """Mixin of a convolution whose result may be written to a tensor that is given."""

    def forward(self, input: Tensor, write_to: Tensor | None = None) -> Tensor:
        out = super().forward(input)
        return out if write_to is None else write_to.copy_(out)


class BinaryConv3dWritesTo(WritesTo, BinaryConv3d):
    """Of ``KVAESafeConv3d``."""


@register_packed(BinaryConv3dWritesTo)
class PackedConv3dWritesTo(WritesTo, PackedConv3d):
    """The packed :class:`BinaryConv3dWritesTo`."""


# Those called safe only split a large input.
FORMS = {'CosmosCausalConv3d': BinaryCausalConv3d, 'CogVideoXSafeConv3d': BinaryConv3d, 'Kandinsky6SRSafeConv3d': BinaryConv3d,
         'WanCausalConv3d': BinaryConv3dAfterZeros,
         'KVAESafeConv3d': BinaryConv3dWritesTo}
