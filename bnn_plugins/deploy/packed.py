"""Packed layers: bits, integer arithmetic, no latent weights.

A packed layer is made from a latent one (:meth:`PackedModule.from_latent`) and takes its place: it has the same attributes and
activation binarizer. Bits of k-bit values are *planes* of one-bit values:

- a k-bit weight is :math:`\\sum_j 2^j s_j` with signs :math:`s_j` (its levels are odd integers),
- a k-bit unsigned activation is :math:`\\sum_i 2^i b_i` with :math:`b_i \\in \\{0, 1\\}`. As :math:`b = (1 + s) / 2`, its
  convolution is :math:`(s \\circledast w + \\sum w) / 2`, where a tap outside of the image (b = 0) counts as s = -1.

Both make any bit width a sum of one-bit operators, in integers. On a CPU the levels are also bytes, and one int8 operator sums
up what several planes would: the same integers (:func:`in_bytes`).
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

import bnn_kernels
from bnn_kernels.derived import Derived
from bnn_kernels.geometry import INT8_TERMS_LIMIT, TERMS_LIMIT

from ..binarize import ActivationBinarizer
from ..layers import AdaptiveConv2d, BinaryConv2d, BinaryLayer, BinaryLinear
from ..layers.adaptive import spend
from ..layers.base import finish
from ..layers.conv import convolve_levels
from ..layers.expand import expand_input
from ..layers.linear import multiply_levels


class PackedModule(nn.Module):
    """Base of what :func:`bnn_plugins.pack_` puts in the place of latent modules, see :func:`register_packed`.

    It stays in evaluation mode when the model around it goes into training mode.
    """

    @classmethod
    def from_latent(cls, layer: nn.Module) -> Self:
        """The packed form of ``layer``, which stays as it is; ``__init__`` is not called.

        The attributes, submodules and parameters that a packed module keeps are those of ``layer``, and so are the dicts of
        hooks, so that the handles which registered them remove them.
        """
        packed = cls.__new__(cls)
        vars(packed).update(vars(layer))
        for name in ('_parameters', '_buffers', '_modules', '_non_persistent_buffers_set'):
            vars(packed)[name] = vars(layer)[name].copy()
        return packed

    def train(self, mode: bool = True) -> Self:
        return super().train(False)  # nothing is trained, and a norm inside must not follow the data

    def signature(self) -> str:
        """What must be the same for two packed modules to compute the same with the same bits."""
        raise NotImplementedError

    def _apply(self, fn, recurse=True):
        """Bits have one order in memory: the memory format that ``.to()`` gives to 4 or 5 dimensions is not for them."""
        def on_values(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point() or tensor.dim() < 2:
                return fn(tensor)
            out = fn(values := tensor.flatten())
            return tensor if out is values else out.view(tensor.shape)

        return super()._apply(on_values, recurse)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, '_metadata'):  # torch's own, which a saved state dict keeps
            destination._metadata[prefix[:-1]]['signature'] = self.signature()

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        found = local_metadata.get('signature', self.signature())
        if found != self.signature():
            raise ValueError(f'these are weights for another config: the layer {prefix[:-1]!r} is "{self.signature()}" in the '
                             f'model, but "{found}" in the state dict')
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


PACKED_CLASSES: dict[type[nn.Module], type[PackedModule]] = {}


def register_packed(latent_class: type[nn.Module]) -> Callable[[type[PackedModule]], type[PackedModule]]:
    """Class decorator: :func:`bnn_plugins.pack_` turns each ``latent_class`` into a decorated one.

    Subclasses of ``latent_class`` that define nothing but ``__init__`` and ``extra_repr`` are packed into it, too.

    Example:
        >>> from bnn_plugins.deploy import PackedLinear, register_packed
        >>> class ClampedLinear(BinaryLinear):
        ...     def forward(self, input):
        ...         return super().forward(input).clamp(-1, 1)
        >>> @register_packed(ClampedLinear)
        ... class PackedClampedLinear(PackedLinear):
        ...     def forward(self, input):
        ...         return super().forward(input).clamp(-1, 1)
        ...     def signature(self):
        ...         return super().signature() + ' clamped'
        >>> type(pack_(nn.Sequential(ClampedLinear(8, 8)))[0]).__name__
        'PackedClampedLinear'
    """

    def register(packed_class: type[PackedModule]) -> type[PackedModule]:
        PACKED_CLASSES[latent_class] = packed_class
        return packed_class

    return register


class PackedLayer(PackedModule):
    """What packed convolutions and packed linear layers share.

    Attributes:
        weight_bits: int32 ``[w_bits, O, ...]``, layout of ``bnn_kernels.layout``; with several ``bases`` a plane is a basis.
        weight_scale: ``[bases * O]``, ``[1]`` or ``None``.
        folded_scale: ``[O]`` or ``None``.
        bias: ``[O]`` or ``None``.
        activation: the latent layer's binarizer (its thresholds).
        gain: its gain, or ``None``.
        expand, replicas: expanding-and-shrinking; the accumulators are tiled ``replicas`` times, before bias and folded scale.
    """

    bases = 1
    has_bytes = True  # whether it has :meth:`_bytes`

    @staticmethod
    def _as_images(filters: Tensor) -> Tensor:
        """Filters ``[O, ...]`` as the operators take them, ``[n * O, C / groups, kH, kW]`` or ``[O, C]``."""
        return filters

    @classmethod
    @torch.no_grad()
    def from_latent(cls, layer: nn.Module) -> Self:
        binarizer = copy.deepcopy(layer.weight_binarizer).eval()  # some draw their signs in training
        levels, scale = binarizer(layer.filters)
        numbers = ((levels + 2 ** binarizer.bits - 1) / 2).to(torch.int32)
        planes = [bnn_kernels.pack_weight(cls._as_images(((number >> plane) & 1) * 2.0 - 1))
                  for number in numbers.chunk(binarizer.bases) for plane in range(binarizer.bits)]
        packed = super().from_latent(layer)
        packed.bases = binarizer.bases
        del packed._parameters['weight'], packed._modules['weight_binarizer']
        packed.register_buffer('weight_bits', torch.stack(planes))
        packed.register_buffer('weight_scale', None if scale is None else scale.detach().clone())
        return packed

    @property
    def w_bits(self) -> int:
        return self.weight_bits.shape[0]

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """The levels as floats, for methods with real activations."""
        planes = [bnn_kernels.unpack_weight(words, self._fan()) for words in self.weight_bits]
        if self.bases > 1:
            return torch.cat(planes).to(dtype)
        return torch.stack([plane * 2 ** j for j, plane in enumerate(planes)]).sum(0).to(dtype)

    def _accumulate(self, x: Tensor, activation: ActivationBinarizer | None = None) -> Tensor:
        """The int32 accumulators of signed or unsigned activations (the layer's, if none are said), plane by plane."""
        activation = activation or self.activation
        if activation.signed:
            words = self._pack(activation.prepare(x), activation.threshold())
            sums = [self._binary(words, w, self.pad_value) for w in self.weight_bits]
        elif in_bytes(self, activation, x):
            dtype = torch.int8 if activation.twos_complement else torch.uint8
            return self._bytes(activation(x).to(dtype), *byte_weight(self.weight_bits, self._fan(), dtype))
        else:
            levels = activation(x).to(torch.int32)
            sums = [0] * len(self.weight_bits)
            for i in range(activation.bits):
                words = self._pack(((levels >> i) & 1) * 2.0 - 1, None)
                worth = -2 ** i if activation.twos_complement and i == activation.bits - 1 else 2 ** i
                for j, w in enumerate(self.weight_bits):
                    sums[j] = sums[j] + (self._binary(words, w, -1) + self._plane_sums(w)) // 2 * worth
        return self._joined(sums)

    def _joined(self, sums: list[Tensor]) -> Tensor:
        """The accumulators of all planes as those of the layer."""
        if self.bases > 1:
            return torch.cat(sums, self.channel_dim)
        return sums[0] if len(sums) == 1 else sum(acc * 2 ** j for j, acc in enumerate(sums))

    @property
    def replicas(self) -> int:
        return 1 if self.expand is None else self.expand.replicas

    def _epilogue(self, x: Tensor, acc: Tensor) -> Tensor:
        return finish(self, x, acc, self.weight_scale, self.bias)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        for name in ('weight_scale', 'folded_scale'):
            value = state_dict.get(prefix + name)
            if value is not None and getattr(self, name) is None:
                setattr(self, name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@torch.no_grad()
def weight_levels(layer: nn.Module) -> Tensor:
    """The integers that a latent or a packed layer sums with: -1 and +1 for weights of one bit, without the scale.

    Returns:
        float32, one filter for each output: ``[O, C / groups, kH, kW]`` (as many dimensions as the convolution has) or
        ``[O, C]``; the bases of a layer with several lie one whole set of filters behind the other.

    Raises:
        TypeError: for another module.

    Example:
        >>> layer = BinaryLinear(3, 1, method='xnor')
        >>> _ = layer.weight.data.copy_(torch.tensor([[0.5, -2.0, 0.0]]))
        >>> weight_levels(layer)
        tensor([[ 1., -1.,  1.]])
        >>> torch.equal(weight_levels(pack_(nn.Sequential(layer))[0]), weight_levels(layer))
        True
    """
    if isinstance(layer, PackedLayer):
        return layer._weight(torch.float32)
    if not isinstance(layer, BinaryLayer):
        raise TypeError(f'weight_levels takes a latent or a packed layer, but got a {type(layer).__name__}')
    binarizer = copy.deepcopy(layer.weight_binarizer).eval()  # some draw their signs in training
    return binarizer(layer.filters)[0].float()


def levels_dtype(activation: ActivationBinarizer, x: Tensor) -> torch.dtype:
    """dtype of the levels of ``x`` in a latent layer: a threshold or a step in float32 lifts inputs in half precision."""
    threshold = activation.threshold()
    learned = activation.step if threshold is None else threshold
    return torch.promote_types(x.dtype, learned.dtype) if isinstance(learned, Tensor) else x.dtype


def in_bytes(layer: PackedLayer, activation: ActivationBinarizer, x: Tensor) -> bool:
    """Whether the levels of inputs and weights are summed as int8: several planes on a CPU, whose sums a float32 holds."""
    planes = activation.bits * layer.w_bits
    most = layer.fan_in * (2 ** activation.bits - 1) * (2 ** layer.w_bits - 1)
    return x.is_cpu and layer.has_bytes and planes > 1 and layer.bases == 1 and layer.w_bits < 8 and most < TERMS_LIMIT \
        and layer.fan_in <= INT8_TERMS_LIMIT


def byte_weight(words: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, bnn_kernels.Epilogue]:
    """The zero of inputs of ``dtype``, the levels of a weight as int8, and the epilogue that leaves sums as they are; in eager
    code made once for each."""
    if bnn_kernels.PreparedOp.direct(words):
        return known_byte_weight([words], (channels, dtype))
    return new_byte_weight(words, channels, dtype)


def new_byte_weight(words: Tensor, channels: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, bnn_kernels.Epilogue]:
    levels = sum(bnn_kernels.unpack_weight(plane, channels) * 2 ** j for j, plane in enumerate(words)).to(torch.int8)
    ones = torch.ones(len(levels), device=words.device)
    return torch.zeros(1, dtype=dtype, device=words.device), levels, bnn_kernels.Epilogue(ones, torch.zeros_like(ones))


known_byte_weight = Derived(new_byte_weight)


def filter_sums(words: Tensor, channels: int) -> Tensor:
    """The sum of the signs of each filter, int32 ``[O]``; in eager code made once for each weight."""
    if bnn_kernels.PreparedOp.direct(words):
        return known_filter_sums([words], (channels,))
    return new_filter_sums(words, channels)


def new_filter_sums(words: Tensor, channels: int) -> Tensor:
    return bnn_kernels.unpack_weight(words, channels).flatten(1).sum(1).to(torch.int32)


known_filter_sums = Derived(new_filter_sums)


def method_text(method: str | dict) -> str:
    """``'dorefa(a_bits=2, w_bits=1)'``: the order of the options says nothing, and mmengine's configs do not keep it."""
    if isinstance(method, str):
        return method
    return f'{method["type"]}({", ".join(f"{key}={method[key]!r}" for key in sorted(method) if key != "type")})'


def expand_text(layer: nn.Module) -> str:
    return '' if layer.expand is None else f' {layer.expand.text()}'


def convolve_words(words: Tensor, w: Tensor, channels: int, stride: Sequence[int], pads: Sequence[int],
                   dilation: Sequence[int], groups: int, pad_value: int) -> Tensor:
    """Int32 ``[N, O, H', W']``; ``pads``: left, right, top and bottom."""
    left, right, top, bottom = pads
    acc = bnn_kernels.binary_conv2d(words, w, channels, stride, (bottom, right), dilation, groups, pad_value)
    # padding='same' with an even kernel pads one row or column more at the end: the first output is one too many.
    return acc[..., bottom - top:, right - left:]


class PackedConv(PackedLayer):
    """What packed convolutions over one, two and three dimensions share."""

    channel_dim = 1

    def _fan(self) -> int:
        return self.fan_in // math.prod(self.kernel_size)

    def forward(self, input: Tensor) -> Tensor:
        if self.pre_norm is not None:
            input = self.pre_norm(input)
        seen = expand_input(self, input)
        if self.activation.bits == 32:
            return self._epilogue(input, convolve_levels(self, seen, self._weight(seen.dtype)))
        # dtype and memory format of a latent convolution: float layers behind it sum in an order that depends on both.
        acc = self._accumulate(seen).to(levels_dtype(self.activation, seen), memory_format=memory_format(seen))
        return self._epilogue(input, acc)

    def signature(self) -> str:
        kind = 'conv' if len(self.kernel_size) == 2 else f'conv{len(self.kernel_size)}d'
        return (f'{kind} {self.in_channels}->{self.out_channels} kernel {tuple(self.kernel_size)} stride {tuple(self.stride)} '
                f'padding {self.padding} dilation {tuple(self.dilation)} groups {self.groups} pad_value {self.pad_value} '
                f'method {method_text(self.method)}{expand_text(self)}')

    def extra_repr(self) -> str:
        return f'{self.signature()}, weight bits {self.w_bits}'


@register_packed(BinaryConv2d)
class PackedConv2d(PackedConv):
    """The packed :class:`BinaryConv2d`. ``[N, C, H, W]`` -> ``[N, O, H', W']``."""

    def _pack(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        return bnn_kernels.pack_activations(x, threshold, self.groups)

    def _plane_sums(self, w: Tensor) -> Tensor:
        return filter_sums(w, self._fan()).view(-1, 1, 1)

    def _binary(self, words: Tensor, w: Tensor, pad_value: int) -> Tensor:
        return convolve_words(words, w, self._fan() * self.groups, self.stride, self._reversed_padding_repeated_twice,
                              self.dilation, self.groups, pad_value)

    def _bytes(self, levels: Tensor, zero: Tensor, weight: Tensor, epilogue: bnn_kernels.Epilogue) -> Tensor:
        left, right, top, bottom = self._reversed_padding_repeated_twice
        levels = levels.contiguous(memory_format=torch.channels_last)  # as the operator reads them, without a copy of its own
        _, acc = bnn_kernels.int8_conv2d(levels, zero, weight, epilogue, stride=self.stride,
                                         padding=(bottom, right), dilation=self.dilation, groups=self.groups)
        return acc[..., bottom - top:, right - left:].to(torch.int32)


@register_packed(AdaptiveConv2d)
class PackedAdaptiveConv2d(PackedConv2d):
    """The packed :class:`AdaptiveConv2d`: one set of bits, as many planes of an image as its router takes."""

    def forward(self, input: Tensor) -> Tensor:
        def accumulate(x: Tensor, activation: ActivationBinarizer) -> Tensor:
            return self._accumulate(x, activation).to(x.dtype, memory_format=memory_format(x))

        return spend(self, input, accumulate, self.weight_scale)

    def signature(self) -> str:
        return f'{super().signature()} adaptive {tuple(act.bits for act in self.choices)}'


def memory_format(x: Tensor) -> torch.memory_format:
    """That of the output of a latent convolution of ``x``: channels-last where the strides of an image are in this order."""
    least = 0
    if x.ndim != 4:
        return torch.contiguous_format
    for dim in (1, 3, 2, 0):
        if x.shape[dim] == 0 or x.stride(dim) < least or (dim == 0 and x.stride(1) == least):
            return torch.contiguous_format
        least = x.stride(dim) * x.shape[dim]
    return torch.channels_last


@register_packed(BinaryLinear)
class PackedLinear(PackedLayer):
    """The packed :class:`BinaryLinear`. ``[..., in_features]`` -> ``[..., out_features]``."""

    channel_dim = -1
    pad_value = 0

    def _fan(self) -> int:
        return self.fan_in

    def _pack(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        return bnn_kernels.pack_features(x, threshold)

    def _plane_sums(self, w: Tensor) -> Tensor:
        return filter_sums(w, self._fan())

    def _binary(self, words: Tensor, w: Tensor, pad_value: int) -> Tensor:
        return bnn_kernels.binary_linear(words, w, self.fan_in)

    def _bytes(self, levels: Tensor, zero: Tensor, weight: Tensor, epilogue: bnn_kernels.Epilogue) -> Tensor:
        return bnn_kernels.int8_linear(levels, zero, weight, epilogue).to(torch.int32)

    def forward(self, input: Tensor) -> Tensor:
        seen = expand_input(self, input)
        if self.activation.bits == 32:
            return self._epilogue(input, multiply_levels(self, seen, self._weight(seen.dtype)))
        return self._epilogue(input, self._accumulate(seen).to(levels_dtype(self.activation, seen)))

    def signature(self) -> str:
        return f'linear {self.in_features}->{self.out_features} method {method_text(self.method)}{expand_text(self)}'

    def extra_repr(self) -> str:
        return f'{self.signature()}, weight bits {self.w_bits}'

