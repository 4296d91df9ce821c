"""Binary feature pyramid."""

import inspect

from mmdet.models.necks import FPN
from torch import nn

from ...binarize import check_keys
from ...registry import MODELS
from ..blocks import BinaryConvModule


@MODELS.register_module()
class BNNFPN(FPN):
    """``mmdet.FPN`` whose lateral, output and extra convolutions are binary, each with a norm and a shortcut.

    Args:
        method (str | dict): see :func:`bnn_plugins.list_methods`.
        act (str): non-linearity after each convolution; default ``'identity'``: heads expect unbounded features of both
            signs, as mmdet's FPN without ``act_cfg`` gives them.
        pad_value (int): 0, -1 or 1.
        expand (dict | None): expanding-and-shrinking inside of each convolution, ``dict(tau=2)``; widths stay.
        norm_cfg (dict): defaults to batch norm: sums of signs need one.
        other arguments: as in ``mmdet.FPN``, but for ``conv_cfg`` and ``act_cfg``, which must stay None, and for
            ``relu_before_extra_convs``, which does nothing: behind a ReLU all signs are +1.

    Raises:
        ValueError: for an unknown argument, or when ``conv_cfg`` or ``act_cfg`` is given.
    """

    def __init__(self, in_channels: list[int], out_channels: int, num_outs: int, method: str | dict = 'reactnet',
                 act: str = 'identity', pad_value: int = 0, expand: dict | None = None, norm_cfg: dict | None = None,
                 conv_cfg: dict | None = None, act_cfg: dict | None = None, init_cfg: dict | list | None = None, **kwargs):
        check_keys('argument of BNNFPN', kwargs, inspect.signature(FPN).parameters)
        if conv_cfg is not None or act_cfg is not None:
            raise ValueError('BNNFPN makes its own binary convolutions: use method= and act=, not conv_cfg= and act_cfg=')
        super().__init__(list(in_channels), out_channels, num_outs,
                         init_cfg=init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'), **kwargs)
        self.relu_before_extra_convs = False
        norm_cfg = norm_cfg or dict(type='BN', requires_grad=True)
        common = dict(method=method, pad_value=pad_value, act=act, expand=expand)
        # FPN has decided how many convolutions there are and their shapes; only the kind changes.
        for convs, norm in ((self.lateral_convs, None if self.no_norm_on_lateral else norm_cfg), (self.fpn_convs, norm_cfg)):
            for index, module in enumerate(convs):
                convs[index] = to_binary(module.conv, dict(common, norm_cfg=norm))


def to_binary(conv: nn.Conv2d, common: dict) -> BinaryConvModule:
    """A :class:`BinaryConvModule` of the shape of ``conv``."""
    return BinaryConvModule(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0],
                            **common)
