"""Other packages fold a batch norm into the convolution before it by scaling its weight, whose sign loses a positive factor.

Where the layer is a binary one, these functions have it fold the norm itself, see :meth:`.BinaryLayer.fold_norm_`.
"""

import copy
import inspect
from types import ModuleType

import wrapt

from ..layers import BinaryConv2d, BinaryLayer


def fold_in_place(fusion: ModuleType) -> None:
    """``mmcv.cnn.fuse_conv_bn``."""

    @wrapt.patch_function_wrapper(fusion, '_fuse_conv_bn')
    def fuse(original, _, args, kwargs):
        conv, norm = args
        if not isinstance(conv, BinaryLayer):
            return original(conv, norm)
        conv.fold_norm_(norm)
        return conv

    @wrapt.patch_function_wrapper(fusion, 'fuse_conv_bn')
    def check(original, _, args, kwargs):
        module, = *args, *kwargs.values()
        for part in module.modules():  # all of them before the first norm is folded
            weight = getattr(getattr(part, 'norm_behind_pooling', None), 'weight', None)
            if weight is not None and bool((weight < 0).any()):
                raise ValueError(f'fuse_conv_bn: the stem of {type(part).__name__} pools between convolution and norm, '
                                 'whose negative weights cannot be moved in front of a maximum; run it without fuse_conv_bn')
        return original(*args, **kwargs)


def fold_at_each_call(module: ModuleType) -> None:
    """``efficient_conv_bn_eval`` of mmcv's ``ConvModule``."""

    @wrapt.patch_function_wrapper(module, 'efficient_conv_bn_eval_forward')
    def forward(original, _, args, kwargs):
        norm, conv, x = args
        return conv.forward_with_norm(x, norm) if isinstance(conv, BinaryConv2d) else original(norm, conv, x)


def refuse_tracing(module: ModuleType) -> None:
    """``efficient_conv_bn_eval`` of mmengine, which finds its convolutions by torch.fx."""

    @wrapt.patch_function_wrapper(module, 'turn_on_efficient_conv_bn_eval_for_single_model')
    def turn_on(original, _, args, kwargs):
        model, = *args, *kwargs.values()
        name = next((name for name, layer in model.named_modules() if isinstance(layer, BinaryLayer)), None)
        if name is not None:
            raise ValueError(f'efficient_conv_bn_eval: torch.fx cannot follow the binary layer {name!r}; fold its norm once, '
                             'with mmcv.cnn.fuse_conv_bn')
        return original(model)


def fold_copies(utils: ModuleType) -> None:
    """``torch.nn.utils.fuse_conv_bn_eval`` and ``fuse_linear_bn_eval``."""

    def fuse(original, _, args, kwargs):
        layer, norm, *_ = inspect.signature(original).bind(*args, **kwargs).args
        if not isinstance(layer, BinaryLayer) or layer.training or norm.training:  # the original refuses training
            return original(*args, **kwargs)
        layer = copy.deepcopy(layer)
        layer.fold_norm_(norm)
        return layer

    for name in ('fuse_conv_bn_eval', 'fuse_linear_bn_eval'):
        wrapt.wrap_function_wrapper(utils.fusion, name, fuse)
        setattr(utils, name, getattr(utils.fusion, name))
