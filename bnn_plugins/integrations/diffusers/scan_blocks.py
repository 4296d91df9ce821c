"""Blocks of a binary UNet that mix positions with binary LSTMs instead of attention: linear in the number of pixels."""

import math

from torch import Tensor, nn

from ...layers import BinaryScan2d, RPReLU
from .blocks import BlockOptions, binarize_block_, register_block


class BinaryScanUnit2D(nn.Module):
    """``act(scan(norm(x))) + x`` in the place of an ``Attention``: a norm, LSTMs along rows and columns, the real shortcut.

    Shape: ``[N, C, H, W]``, kept.
    """

    def __init__(self, channels: int, options: BlockOptions):
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(options.groups, channels), channels, options.eps)
        self.scan = BinaryScan2d(channels, method=options.method, expand=options.expand)
        self.act = RPReLU(channels)

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return self.act(self.scan(self.norm(hidden_states))) + hidden_states


@register_block('down', 'BinaryScanDownBlock2D', 'AttnDownBlock2D')
@register_block('mid', 'BinaryScanMidBlock2D', 'UNetMidBlock2D')
@register_block('up', 'BinaryScanUpBlock2D', 'AttnUpBlock2D')
def scan_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Binary residual and sampling layers; a :class:`BinaryScanUnit2D` for each attention."""
    binarize_block_(host, options)
    host.attentions = nn.ModuleList(attention and BinaryScanUnit2D(attention.to_q.in_features, options)
                                    for attention in host.attentions)
    return host
