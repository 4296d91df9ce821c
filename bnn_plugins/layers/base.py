"""What binary convolutions and binary linear layers share."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnn_kernels.training import NORM_TERMS

from ..binarize import ActivationBinarizer, LayerSpec, build_method, quantize_gradient
from ..binarize.activations import per_channel
from . import training
from .expand import Expansion, expand_input, input_copies, spread_copies_, tile, widen_bias_

CHECKED_NUMEL = 256


class BinaryLayer(nn.Module):
    """Mixin of the latent layers: binarizers, epilogue, folded factors.

    A subclass lists this mixin first and ``nn.Conv2d`` or ``nn.Linear`` directly after it: mmengine's ``init_cfg`` looks at
    the class and its direct bases only.

    Attributes:
        activation (ActivationBinarizer): binarizer of the input.
        weight_binarizer (WeightBinarizer): binarizer of ``weight``, the latent weight.
        gain (nn.Module | None): a factor that depends on the input or the position, see :mod:`bnn_plugins.binarize.gains`.
        g_bits (int): bits of the gradient of the accumulators, 32 for all.
        latent_clip (float | None): bound of the latents, see :func:`bnn_plugins.binarize.clip_latents_`.
        folded_scale (Tensor | None): ``[O]``, a following norm's factor after :meth:`fold_norm_`.
        expand (Expansion | None): expanding-and-shrinking; ``in_*`` and ``out_*`` of the layer are the widths outside.
        filters (Tensor): ``[O, ...]``, the latent weight as one filter per output: a view of ``weight``.
        fan_in (int): inputs of one filter.
        path (str): its name in the model that ``binarize_`` made it for, for messages.
    """

    channel_dim: int
    path = ''

    def _init_binary(self, in_channels: int, method: str | dict, expand: Expansion | None, window: dict | None = None) -> None:
        bundle = build_method(method)
        self.method, self.expand = method, expand
        self.fan_in = self.filters[0].numel()
        layer = LayerSpec(in_channels=in_channels, out_channels=len(self.filters), fan_in=self.fan_in,
                          channel_dim=self.channel_dim, window=window)
        self.activation: ActivationBinarizer = bundle.activation(replace(layer, in_channels=in_channels * input_copies(self)))
        self.weight_binarizer = bundle.weight(layer)
        self.gain = bundle.gain and bundle.gain(layer)
        self.latent_clip, self.g_bits = bundle.latent_clip, bundle.g_bits
        self.register_buffer('folded_scale', None)
        self.register_parameter('copy_shift', None)
        if expand is not None:
            widen_bias_(self)
            shift = getattr(self.activation, 'shift', None)
            if expand.drop_in:
                # Copies of one input would have one sign, and two weights of it only their sum.
                self.copy_shift = shift = nn.Parameter(self.weight.new_zeros(in_channels * expand.copies))
            if shift is not None:
                spread_copies_(shift, expand.copies, expand.spread)
        self._sign_checked = not (self.activation.bits == 1 and self.activation.signed)

    @property
    def filters(self) -> Tensor:
        return self.weight

    @property
    def w_bits(self) -> int:
        return self.weight_binarizer.bits * self.bases

    @property
    def bases(self) -> int:
        return self.weight_binarizer.bases

    @property
    def replicas(self) -> int:
        """How often the accumulators are tiled before the epilogue."""
        return 1 if self.expand is None else self.expand.replicas

    def _accumulate(self, x: Tensor, weight_levels: Tensor) -> Tensor:
        """The product of the input's levels with those of the weight."""
        acc = training.sums(self, x, weight_levels)
        return self._multiply(self._levels(x), weight_levels) if acc is None else acc

    def _product(self, x: Tensor, weight: Tensor, alone: bool = True) -> tuple[Tensor, Tensor | None]:
        """The product of the input's levels with those of the latent weight, and the scale that it is still multiplied by.

        ``alone``: the scale is all that follows, so that training operators may multiply by it.
        """
        alone = alone and self.gain is None and self.folded_scale is None and self.g_bits == 32 and self.fan_in <= NORM_TERMS
        acc = training.scaled_sums(self, x, weight) if alone else None
        if acc is not None:
            return acc, None
        levels, scale = self.weight_binarizer(weight)
        return self._multiply(self._levels(x), levels) if alone else self._accumulate(x, levels), scale

    def _multiply(self, levels: Tensor, weight_levels: Tensor) -> Tensor:
        """By torch's operators."""
        raise NotImplementedError

    def _levels(self, x: Tensor) -> Tensor:
        x = expand_input(self, x)
        levels = self.activation(x)
        if self.training and not self._sign_checked and not torch.compiler.is_compiling():
            self._sign_checked = True
            self._refuse_constant_sign(x, levels)
        return levels

    def _refuse_constant_sign(self, x: Tensor, levels: Tensor) -> None:
        if x.numel() < CHECKED_NUMEL or not bool((levels > 0).all()) or bool(x.amin() == x.amax()):
            return
        if self.path:
            advice = f"A ReLU that is called as a function? rules={{'{self.path}': 'float'}} keeps the layer real"
        else:
            advice = ("A ReLU before it? Use type='bnn_plugins.binarized' (it replaces the ReLU), a native backbone such as "
                      "'bnn_plugins.BNNResNet', or a norm before the sign (pre_norm=True of BinaryConv2d)")
        raise ValueError(
            f'{self.path and self.path + ": "}{type(self).__name__}({self.extra_repr()}): the input of this binary layer is '
            f'never below its threshold, so its sign is always +1 and nothing can be learned. {advice}.')

    def _epilogue(self, x: Tensor, acc: Tensor, scale: Tensor | None, bias: Tensor | None,
                  factor: Tensor | None = None) -> Tensor:
        if self.g_bits < 32 and self.training:
            acc = quantize_gradient(acc, self.g_bits)
        return finish(self, x, acc, scale, bias, factor)

    def fold_(self, factor: Tensor) -> None:
        """Multiply the output by ``factor`` ``[O]`` from now on (a following norm's affine factor)."""
        self.folded_scale = factor if self.folded_scale is None else self.folded_scale * factor

    @torch.no_grad()
    def fold_norm_(self, norm: _BatchNorm) -> None:
        """Take the place of a batch norm behind the layer: the layer computes what both compute in evaluation.

        The latents stay as they are, since a sign would lose the factor: it is applied to the output.

        Args:
            norm: with running statistics, of as many features as the layer has outputs.

        Raises:
            ValueError: for another norm, and for a layer whose outputs are no single sum of levels.

        Example:
            >>> import torch
            >>> from bnn_plugins.layers import BinaryLinear
            >>> layer, norm, x = BinaryLinear(8, 4), torch.nn.BatchNorm1d(4).eval(), torch.randn(2, 8)
            >>> expected = norm(layer(x))
            >>> layer.fold_norm_(norm)
            >>> torch.allclose(layer(x), expected, atol=1e-5)
            True
        """
        factor, bias = self.through_norm(norm)
        self.fold_(factor.to(self.weight.dtype))
        self.bias = nn.Parameter(bias.to(self.weight.dtype))

    def through_norm(self, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
        """Factor and bias ``[O]`` of the layer and a norm behind it, differentiable; errors: see :meth:`fold_norm_`."""
        outputs = len(self.filters) * self.replicas
        if norm.running_var is None:
            raise ValueError(f'{norm} has no running statistics: it cannot be folded into the layer before it')
        if norm.num_features != outputs:
            raise ValueError(f'a norm of {norm.num_features} features cannot be folded into a layer of {outputs} outputs')
        factor = torch.rsqrt(norm.running_var + norm.eps)
        factor = factor if norm.weight is None else norm.weight * factor
        bias = factor * (-norm.running_mean if self.bias is None else self.bias - norm.running_mean)
        return factor, bias if norm.bias is None else bias + norm.bias

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if prefix + 'weight_bits' in state_dict:
            raise ValueError(f'these are weights of a packed model, but the layer {prefix[:-1]!r} is latent: load the packed '
                             'file with bnn_plugins.load_packed_, or pack_ the model first')
        if prefix + 'folded_scale' in state_dict and self.folded_scale is None:
            self.folded_scale = torch.empty_like(state_dict[prefix + 'folded_scale'])
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def summation(layer, levels: Tensor) -> AbstractContextManager:
    """The context in which levels are summed. Autocast would round the sums: fast in training, but what is evaluated must be
    what the bits compute."""
    return nullcontext() if layer.training else torch.autocast(levels.device.type, enabled=False)


def exact(layer, acc: Tensor) -> Tensor:
    """The accumulators as the integers that they are: on a GPU a convolution may transform its input, which rounds."""
    integers = layer.activation.bits < 32 and getattr(layer, 'w_bits', 32) < 32
    return acc.round() if acc.is_cuda and not layer.training and integers else acc


def output_scale(*factors: Tensor | float | None) -> Tensor | float | None:
    """The product of the factors of an accumulator, in this order (``None`` and 1.0 are left out); ``None`` for 1."""
    scale = None
    for factor in factors:
        if factor is not None and not (isinstance(factor, float) and factor == 1.0):
            scale = factor if scale is None else scale * factor
    return scale


def finish(layer, x: Tensor, acc: Tensor, scale: Tensor | None, bias: Tensor | None, factor: Tensor | None = None) -> Tensor:
    """The epilogue of a latent or packed layer: gain, scale per filter, tile, folded factor and bias per output channel.

    ``x`` is the real input, from which a gain may be computed.
    """
    if layer.gain is not None:
        with summation(layer, acc):
            acc = acc * layer.gain(x, acc)
    scale = output_scale(scale, layer.activation.step)
    if layer.bases > 1:
        acc, scale = add_bases(epilogue(acc, scale, None, layer.channel_dim), layer.bases, layer.channel_dim), None
    if layer.replicas > 1:
        if layer.folded_scale is None and factor is None:  # the same products, before the tile
            acc, scale = epilogue(acc, scale, None, layer.channel_dim), None
        elif isinstance(scale, Tensor) and scale.numel() > 1:
            scale = scale.repeat(layer.replicas)
        acc = tile(acc, layer.replicas, layer.channel_dim)
    return epilogue(acc, output_scale(scale, layer.folded_scale, factor), bias, layer.channel_dim)


def add_bases(x: Tensor, bases: int, channel_dim: int) -> Tensor:
    """The sum over the bases, whose channels lie one whole set behind the other."""
    return reduce(torch.add, x.chunk(bases, channel_dim))  # not a sum over a dimension: the memory format stays


def epilogue(acc: Tensor, scale: Tensor | float | None, bias: Tensor | None, channel_dim: int) -> Tensor:
    """``acc * scale + bias`` per channel, in this order in the latent and in the packed layer.

    Args:
        acc: accumulators, ``[N, O, H, W]`` or ``[..., O]``.
        scale: ``[O]``, ``[1]``, a number or ``None``.
        bias: ``[O]`` or ``None``.
    """
    if scale is not None:
        acc = acc * (per_channel(scale, acc.ndim, channel_dim) if isinstance(scale, Tensor) else scale)
    if bias is not None:
        acc = acc + per_channel(bias, acc.ndim, channel_dim)
    return acc
