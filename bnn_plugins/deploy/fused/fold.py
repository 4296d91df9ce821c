"""What the constants of fused steps are folded from: affines, thresholds and non-linearities of layers, in float64."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bnn_kernels import Epilogue
from bnn_kernels.epilogue import stream_of

from ...binarize import ActivationBinarizer
from ...layers import RPReLU
from ..packed import PackedLayer

LOPSIDED = "padding='same' with an even kernel pads one side more than the other"
SILU_SLOPE = 1.1  # its largest
IMAGE_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
NORMS = (nn.BatchNorm1d, *IMAGE_NORMS)


def pair(value: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


def symmetric_padding(conv: nn.Conv2d) -> tuple[int, int] | None:
    """(height, width); ``None`` where one side is padded more than the other."""
    left, right, top, bottom = conv._reversed_padding_repeated_twice
    return (top, left) if (left, top) == (right, bottom) else None


def depends_on_input(layer: PackedLayer) -> bool:
    """Whether the binarizer changes its input before it compares (takes a mean off, for example)."""
    return getattr(type(layer.activation), 'prepare', None) is not getattr(ActivationBinarizer, 'prepare', None)


def sign_modules(layer: PackedLayer) -> list[nn.Module]:
    """The modules that hold the thresholds of a layer."""
    return [m for m in (layer, layer.activation, getattr(layer, 'pre_norm', None)) if m is not None]


def sign_threshold(layer: PackedLayer) -> Tensor | None:
    """float32 ``[C]`` or ``[1]``: from which value on the input of ``layer`` is the bit 1; ``None`` is 0.

    A norm before the sign and the shifts of copies move the threshold; a level of an unsigned bit starts above 1/2.
    """
    activation = layer.activation
    if not activation.signed:  # round(0.5) is 0
        half = torch.tensor([0.5], device=layer.weight_bits.device)
        return half.nextafter(torch.ones_like(half))
    threshold = activation.threshold()
    norm, shift = getattr(layer, 'pre_norm', None), getattr(layer, 'copy_shift', None)
    if norm is None and shift is None:
        return None if threshold is None else threshold.detach().float().reshape(-1).contiguous()
    value = (shift if norm is None else norm.running_mean).detach().new_zeros(1).double()
    value = value if threshold is None else value + threshold.double()
    if shift is not None:
        value = value - shift.double()
    if norm is not None:
        value = value * (norm.running_var.double() + norm.eps).sqrt() + norm.running_mean.double()
    return value.float().contiguous()


def affine(layer: PackedLayer, tiles: int, norms: list[nn.Module], sizes: bool = False) -> tuple[Tensor, Tensor]:
    """``scale``, ``bias`` float64 ``[P]`` with output = accumulator * scale + bias.

    Args:
        sizes: give the sums of the magnitudes of all that is folded, which bound the rounding errors, instead of the values.
    """
    outputs = layer.weight_bits.shape[1]
    scale = torch.ones(outputs, dtype=torch.float64, device=layer.weight_bits.device)
    if layer.weight_scale is not None:
        scale = scale * layer.weight_scale.double()
    scale, bias = scale * layer.activation.step, torch.zeros_like(scale)
    if not layer.activation.signed:  # b = (1 + s) / 2
        scale = scale / 2
        bias = scale * layer._plane_sums(layer.weight_bits[0]).reshape(-1).double()
    scale, bias = scale.repeat(layer.replicas), bias.repeat(layer.replicas)
    if layer.folded_scale is not None:
        scale, bias = scale * layer.folded_scale.double(), bias * layer.folded_scale.double()
    if layer.bias is not None:
        bias = bias.abs() + layer.bias.double().abs() if sizes else bias + layer.bias.double()
    return through_norms(scale.repeat(tiles), bias.repeat(tiles), norms, sizes)


def through_norms(scale: Tensor, bias: Tensor, norms: list[nn.Module], sizes: bool = False) -> tuple[Tensor, Tensor]:
    """The affine of norms in evaluation, behind another affine; ``sizes`` as in :func:`affine`."""
    size = torch.abs if sizes else torch.Tensor.double
    scale, bias = size(scale), size(bias)
    for norm in norms:
        mean = norm.running_mean.double()
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * size(norm.weight.double())
        scale, bias = scale * factor, (bias + mean.abs() if sizes else bias - mean) * factor
        bias = bias if norm.bias is None else bias + size(norm.bias.double())
    return scale, bias


def folded_weight(conv: nn.Conv2d, norms: list[nn.Module], sizes: bool = False) -> tuple[Tensor, Tensor]:
    """Weight and bias float64 of a real convolution and its norms; ``sizes`` as in :func:`affine`."""
    weight = conv.weight.double().abs() if sizes else conv.weight.double()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.double()
    scale, bias = through_norms(torch.ones_like(bias), bias, norms, sizes)
    return weight * scale.view(-1, 1, 1, 1), bias


def act_kind(act: nn.Module | str | None) -> str | None:
    """The name of a non-linearity in ``bnn_kernels``; ``None`` for one that it does not know."""
    if act is None or isinstance(act, str):
        return act or 'identity'
    if isinstance(act, ActPart):
        return act_kind(act.whole[0])
    if isinstance(act, nn.PReLU | nn.LeakyReLU) or (isinstance(act, RPReLU) and act.channel_dim in (1, -1)):
        return 'prelu'
    if type(act) in (nn.ReLU, nn.SiLU):
        return 'relu' if type(act) is nn.ReLU else 'silu'
    return 'hardtanh' if type(act) is nn.Hardtanh and (act.min_val, act.max_val) == (-1, 1) else None


def act_vectors(act: nn.Module | str | None, channels: int) -> tuple[str, Tensor | None, Tensor | None, Tensor | None]:
    """``(name, gamma, slope, zeta)``."""
    kind = act_kind(act)
    if isinstance(act, ActPart):
        return kind, *act.vectors()
    if kind != 'prelu':
        return kind, None, None, None
    if isinstance(act, RPReLU):
        return kind, act.gamma.detach(), act.slope.detach(), act.zeta.detach()
    slope = act.weight.detach() if isinstance(act, nn.PReLU) else torch.tensor([float(act.negative_slope)])
    return kind, None, slope.expand(channels), None


class ActPart(nn.Module):
    """A non-linearity for some channels of an image, of the ``width`` channels that ``act`` is made for."""

    def __init__(self, act: nn.Module, width: int, channels: slice):
        super().__init__()
        self.whole, self.width, self.channels = (act,), width, channels  # in a tuple: it belongs to the model

    def vectors(self) -> list[Tensor | None]:
        _, *vectors = act_vectors(self.whole[0], self.width)
        return [v if v is None else v[self.channels] for v in vectors]

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.channels.start, self.width - self.channels.stop
        return self.whole[0](F.pad(x, (0, 0, 0, 0, before, after)))[:, self.channels]


def channels_first(act: nn.Module | str | None) -> bool:
    """Whether the parameters of ``act`` belong to dimension 1, whatever the shape of its input."""
    return (isinstance(act, nn.PReLU) and act.num_parameters > 1) or (isinstance(act, RPReLU) and act.channel_dim == 1)


def through_act(total: Tensor, act: nn.Module | str | None, channel_dim: int) -> Tensor:
    """The magnitudes behind a non-linearity."""
    shape = (-1, *[1] * (total.dim() - 2)) if channel_dim == 1 else (-1,)
    kind, *vectors = act_vectors(act, total.shape[channel_dim])
    gamma, slope, zeta = (v if v is None else v.to(total.device).double().abs().view(shape) for v in vectors)
    total = total if gamma is None else total + gamma
    total = total if slope is None else total * slope.clamp(min=1)
    total = total * SILU_SLOPE if kind == 'silu' else total
    return total if zeta is None else total + zeta


def is_float_conv(module: nn.Module | None) -> bool:
    """Whether a module is a real convolution that computes what ``F.conv2d`` does."""
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and module.padding_mode == 'zeros' \
        and type(module)._conv_forward is nn.Conv2d._conv_forward and 'weight' in module._parameters


def integer_threshold(epilogue: Epilogue, limit: int) -> tuple[Tensor, Tensor]:
    """``(threshold int32 [P], flip bool [P])`` with ``bit == (accumulator >= threshold) != flip``, for all accumulators of
    ``[-limit, limit]``.

    Every step of the epilogue is monotone in the accumulator, rounded or not (negative scales turn it around, slopes must
    not), so the bits change once: where, is found by bisection through the very same operations.
    """
    scale, threshold = epilogue.scale, epilogue.threshold
    flip = scale < 0

    def rises(acc: Tensor) -> Tensor:  # False ... False True ... True over growing accumulators
        v = stream_of(acc.view(1, -1, 1, 1), epilogue, None, torch.float32).view(-1)
        return (v >= (0 if threshold is None else threshold)) != flip

    low = torch.full_like(scale, -limit, dtype=torch.int32)  # the first True is in [low, high]; high may be past the end
    high = torch.full_like(low, limit + 1)
    while bool((low < high).any()):
        middle = torch.div(low + high, 2, rounding_mode='floor')
        found = rises(middle)
        low, high = torch.where(found | (low >= high), low, middle + 1), torch.where(found, middle, high)
        high = torch.maximum(low, high)
    return low, flip
