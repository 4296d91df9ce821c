"""A region proposal network with a binary convolution."""

from mmdet.models.dense_heads import RPNHead
from torch import nn

from ...registry import MODELS
from ..blocks import BinaryConvModule


@MODELS.register_module()
class BNNRPNHead(RPNHead):
    """``mmdet.RPNHead`` whose 3x3 convolutions are binary, each with a norm and a shortcut; both predictions stay real.

    So it is in BiDet's Faster R-CNN (arXiv 2003.03963).

    Args:
        method, pad_value, expand: as in :class:`bnn_plugins.models.BNNFPN`.
        other arguments: as in ``mmdet.RPNHead``.
    """

    def __init__(self, *args, method: str | dict = 'reactnet', pad_value: int = 0, expand: dict | None = None, **kwargs):
        self.binary = dict(method=method, pad_value=pad_value, expand=expand)
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        common = dict(self.binary, act='identity', norm_cfg=dict(type='BN', requires_grad=True))
        self.rpn_conv = nn.Sequential(*(
            BinaryConvModule(self.feat_channels if index else self.in_channels, self.feat_channels, 3, 1, 1, **common)
            for index in range(self.num_convs)))
