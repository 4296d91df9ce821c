"""Adapters of peft beside binary and packed layers: real, and never merged.

Packed layers pass no gradients on: adapters are trained beside the latent layers and used beside the packed ones."""

import sys
from inspect import signature
from types import ModuleType

import torch
import wrapt
from torch import nn

from ..deploy import PackedConv1d, PackedConv2d, PackedConv3d, PackedLinear, PackedModule
from ..layers import BinaryConv1d, BinaryConv2d, BinaryConv3d, BinaryLayer, BinaryLinear


def add_real_adapters(model: ModuleType) -> None:
    """peft makes the convolutions of an adapter of the class of the layer, and knows no packed layer: adapters are real."""
    lora, kinds = sys.modules['peft.tuners.lora.layer'], {}
    for layers, name in (((BinaryConv1d, PackedConv1d), 'Conv1d'), ((BinaryConv2d, PackedConv2d), 'Conv2d'),
                         ((BinaryConv3d, PackedConv3d), 'Conv3d'), ((BinaryLinear, PackedLinear), 'Linear')):
        kinds |= dict.fromkeys(layers, beside_binary(getattr(lora, name), getattr(nn, name)))

    def dispatch(original, _, args, kwargs):
        given = signature(original).bind(*args, **kwargs)
        base = getattr(given.arguments['target'], 'base_layer', given.arguments['target'])
        kind = next((kinds[cls] for cls in type(base).__mro__ if cls in kinds), None)
        if kind is None or given.arguments.get('parameter_name') is not None:
            return original(*args, **kwargs)
        given.arguments.pop('parameter_name', None)
        extra = given.arguments.pop('kwargs', {})
        return kind(*given.args, **given.kwargs, **extra)

    wrapt.wrap_function_wrapper(model, 'dispatch_default', dispatch)


def beside_binary(adapter: type, real: type) -> type:
    """The class ``adapter`` of peft, whose own layers are of the class ``real``, for a binary or packed base layer."""
    def stand_in(layer: nn.Module) -> nn.Module:
        keys = ('in_features', 'out_features') if real is nn.Linear else (
            'in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups')
        like = next(tensor for tensor in (*layer.parameters(), *layer.buffers()))
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        return real(**{key: getattr(layer, key) for key in keys}, bias=False, device=like.device, dtype=dtype)

    class Beside(adapter):
        def __init__(self, base_layer, *args, **kwargs):
            super().__init__(stand_in(base_layer), *args, **kwargs)
            self.base_layer = base_layer

        def update_layer(self, *args, **kwargs):
            base = self.base_layer
            self.base_layer = stand_in(base)
            try:
                super().update_layer(*args, **kwargs)
            finally:
                self.base_layer = base

    Beside.__name__ = Beside.__qualname__ = adapter.__name__
    return Beside


def refuse_merging(lora: ModuleType) -> None:
    """An adapter beside a binary layer works; added to its latent weights it would be lost under the sign."""

    def merge(original, adapter, args, kwargs):
        layer = adapter.get_base_layer()
        if isinstance(layer, BinaryLayer | PackedModule):
            raise ValueError(f'an adapter cannot be merged into a {type(layer).__name__}: the sign of the latent weight would '
                             'lose it. Leave it unmerged, beside the layer')
        return original(*args, **kwargs)

    for name in ('Linear', '_ConvNd'):
        wrapt.wrap_function_wrapper(lora, f'{name}.merge', merge)
