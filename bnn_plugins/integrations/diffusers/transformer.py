"""Blocks of a binary UNet whose attention layers are blocks of a binary Transformer, the scores and values binary, too."""

from torch import Tensor, nn

from ...layers import BinaryTransformerBlock
from .blocks import BlockOptions, binarize_block_, register_block

FEED_FORWARD_RATIO = 4


class BinaryTransformer2D(nn.Module):
    """A :class:`bnn_plugins.layers.BinaryTransformerBlock` in the place of an ``Attention``.

    Norms are over the channels of each token (sampling at many timesteps has no use for statistics of a batch), and the
    binarizer of the probabilities has no number that would depend on how many tokens there are. There is no positional
    embedding: pool branches and the convolutions around know where they are.

    Shape: ``[N, C, H, W]``, kept.
    """

    def __init__(self, channels: int, heads: int, options: BlockOptions):
        super().__init__()
        if options.expand is not None:
            raise ValueError('expand widens every stream of a UNet, for which Transformer blocks are not made: use blocks '
                             "such as 'BinaryAttnDownBlock2D' with it")
        self.block = BinaryTransformerBlock(channels, heads, FEED_FORWARD_RATIO * channels, method=options.method,
                                            probability='max_relative', norm=nn.LayerNorm)

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        return self.block(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@register_block('down', 'BinaryTransformerDownBlock2D', 'AttnDownBlock2D')
@register_block('mid', 'BinaryTransformerMidBlock2D', 'UNetMidBlock2D')
@register_block('up', 'BinaryTransformerUpBlock2D', 'AttnUpBlock2D')
def transformer_block(host: nn.Module, options: BlockOptions) -> nn.Module:
    """Binary residual and sampling layers; a :class:`BinaryTransformer2D` for each attention."""
    binarize_block_(host, options)
    host.attentions = nn.ModuleList(attention and BinaryTransformer2D(attention.to_q.in_features, attention.heads, options)
                                    for attention in host.attentions)
    return host
