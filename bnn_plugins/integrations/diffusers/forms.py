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


# Those called safe only split a large input.
FORMS = {'CosmosCausalConv3d': BinaryCausalConv3d, 'CogVideoXSafeConv3d': BinaryConv3d, 'Kandinsky6SRSafeConv3d': BinaryConv3d}
