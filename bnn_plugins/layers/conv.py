"""The binary convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from ..binarize.lookup import checked_arguments
from .base import BinaryLayer, exact, summation
from .expand import Expansion, checked_expand

PAD_VALUES = (-1, 0, 1)


def convolve_levels(conv, levels: Tensor, weight_levels: Tensor) -> Tensor:
    """The convolution of ``conv`` (its stride, padding, pad_value, dilation, groups) on levels,
    ``[N, bases * O, H', W']``."""
    padding = conv.padding
    if conv.pad_value != 0:
        levels = F.pad(levels, conv._reversed_padding_repeated_twice, value=float(conv.pad_value))
        padding = 0
    with summation(conv, levels):
        accs = [F.conv2d(levels, basis, None, conv.stride, padding, conv.dilation, conv.groups)
                for basis in weight_levels.to(levels.dtype).chunk(conv.bases)]
        acc = accs[0] if conv.bases == 1 else torch.cat(accs, 1)
    return exact(conv, acc)


class BinaryConv2d(BinaryLayer, nn.Conv2d):
    r"""A convolution of quantized activations with quantized weights; arguments of ``nn.Conv2d``, and:

    .. math:: y = \alpha \cdot s \cdot (Q_a(x) \circledast Q_w(W)) + b

    with the levels :math:`Q_a, Q_w` of the method, its weight scale :math:`\alpha` and activation step :math:`s`. The
    convolution of levels is a sum of small integers, so it is exact in float32 and equals the packed layer's.

    Args:
        method: name from :func:`bnn_plugins.list_methods`, or ``dict(type=name, **options)``.
        pad_value: what stands outside of the image after the sign: 0 (exact zero padding), -1 or +1.
        pre_norm: put a batch norm without affine part before the sign (XNOR-Net's order), which makes the layer usable
            behind a ReLU.

        expand: expanding-and-shrinking, see :class:`Expansion`. ``in_channels`` and ``out_channels`` are the widths outside of
            the layer, so those of the widened network (:func:`expanded_width`); there are ``out_channels / replicas`` filters,
            and a bias for every output channel.

    Shape: ``[N, C, H, W]`` -> ``[N, O, H', W']``.

    Raises:
        ValueError: for an unknown method, option or ``pad_value``, a ``padding_mode`` other than zeros, widths that
            ``expand`` does not divide, ``groups`` together with ``expand``, and, at the first training step, when all inputs
            have the same sign.
    """

    channel_dim = 1

    @checked_arguments
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, *, method: str | dict = 'reactnet', pad_value: int = 0,
                 pre_norm: bool = False, expand: dict | Expansion | None = None):
        if padding_mode != 'zeros':
            raise ValueError(f'BinaryConv2d pads with the constant pad_value; padding_mode={padding_mode!r} is not supported')
        expand = checked_expand(expand, groups)
        inputs, filters = (in_channels, out_channels) if expand is None else expand.split(in_channels, out_channels)
        super().__init__(inputs, filters, kernel_size, stride, padding, dilation, groups if expand is None else expand.groups,
                         bias, padding_mode, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        self._init_binary(in_channels, method, expand, dict(kernel_size=self.kernel_size, stride=self.stride,
                                                            padding=self.padding, dilation=self.dilation))
        if pad_value not in PAD_VALUES:
            raise ValueError(f'pad_value must be -1, 0 or 1, but got {pad_value!r}')
        if pad_value != 0 and not (self.activation.signed and self.activation.bits == 1):
            raise ValueError(f'pad_value={pad_value} needs -1/+1 activations; the method {method!r} has others: use 0')
        self.pad_value = pad_value
        # With no affine part the norm only moves the threshold to the running mean.
        self.pre_norm = nn.BatchNorm2d(in_channels, affine=False) if pre_norm else None
        self.to(device=device, dtype=dtype)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_parametrized(self, 'weight') and weight is not self.weight:
            raise ValueError(f'{self}: _conv_forward takes its own latent weight; forward_with_norm takes a norm behind it')
        return self._convolve(input, weight, bias)

    def forward_with_norm(self, input: Tensor, norm: _BatchNorm) -> Tensor:
        """``norm(self(input))`` of a batch norm in evaluation, without a pass for the norm; gradients reach it.

        Raises:
            ValueError: as :meth:`fold_norm_`.
        """
        factor, bias = self.through_norm(norm)
        return self._convolve(input, self.weight, bias, factor)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, factor: Tensor | None = None) -> Tensor:
        if input.ndim != 4:
            raise ValueError(f'BinaryConv2d takes [N, C, H, W], but got {tuple(input.shape)}')
        if self.pre_norm is not None:
            input = self.pre_norm(input)
        weight_levels, scale = self.weight_binarizer(weight)
        return self._epilogue(input, self._accumulate(input, weight_levels), scale, bias, factor)

    _multiply = convolve_levels

    @property
    def plain(self) -> bool:
        """Whether a call is this class's own, with nothing before the sign."""
        return type(self) is BinaryConv2d and 'forward' not in vars(self) and self.pre_norm is None

    def extra_repr(self) -> str:
        expand = '' if self.expand is None else f', {self.expand.text()}'
        return f'{super().extra_repr()}, method={self.method!r}, pad_value={self.pad_value}{expand}'
