"""Binary convolutions over sequences, images and videos."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from bnn_kernels.layout import transpose_weight

from ..binarize.lookup import checked_arguments
from .base import BinaryLayer, exact, summation
from .expand import Expansion, checked_expand

PAD_VALUES = (-1, 0, 1)
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
PRE_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convolve_levels(conv, levels: Tensor, weight_levels: Tensor) -> Tensor:
    """The convolution of ``conv`` (its stride, padding, pad_value, dilation, groups) on levels ``[N, C, ...]``,
    ``[N, bases * O, ...]``."""
    padding = conv.padding
    if conv.pad_value != 0:
        levels = F.pad(levels, conv._reversed_padding_repeated_twice, value=float(conv.pad_value))
        padding = 0
    convolve = CONVOLUTIONS[levels.ndim - 3]
    return of_bases(conv, levels, weight_levels,
                    lambda basis: convolve(levels, basis, None, conv.stride, padding, conv.dilation, conv.groups))


def transpose_levels(conv, levels: Tensor, weight_levels: Tensor, output_padding: list[int]) -> Tensor:
    """The transposed convolution of ``conv`` on levels ``[N, C, H, W]`` with filters ``[bases * O, C / groups, kH, kW]``."""
    def convolve(basis: Tensor) -> Tensor:
        weight = transpose_weight(basis, conv.groups)
        return F.conv_transpose2d(levels, weight, None, conv.stride, conv.padding, output_padding, conv.groups, conv.dilation)
    return of_bases(conv, levels, weight_levels, convolve)


def of_bases(conv, levels: Tensor, weight_levels: Tensor, convolve: Callable[[Tensor], Tensor]) -> Tensor:
    """The channels of each basis behind those of the one before; but for images always contiguous: what float layers behind
    it sum up in which order must not depend on the strides of an input."""
    with summation(conv, levels):
        accs = [convolve(basis) for basis in weight_levels.to(levels.dtype).chunk(conv.bases)]
        acc = accs[0] if conv.bases == 1 else torch.cat(accs, 1)
    return exact(conv, acc if acc.ndim == 4 else acc.contiguous())


class BinaryConv(BinaryLayer):
    """What the convolutions over one, two and three dimensions share. Arguments: see :class:`BinaryConv2d`."""

    channel_dim = 1

    @checked_arguments
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, *, method: str | dict = 'reactnet', pad_value: int = 0,
                 pre_norm: bool = False, expand: dict | Expansion | None = None):
        if padding_mode != 'zeros':
            raise ValueError(f'{type(self).__name__} pads with the constant pad_value; padding_mode={padding_mode!r} is not '
                             'supported')
        expand = checked_expand(expand, groups)
        inputs, filters = (in_channels, out_channels) if expand is None else expand.split(in_channels, out_channels)
        super().__init__(inputs, filters, kernel_size, stride, padding, dilation, groups if expand is None else expand.groups,
                         bias, padding_mode, device, dtype)
        self.in_channels, self.out_channels = in_channels, out_channels
        dims = len(self.kernel_size)
        window = dict(kernel_size=self.kernel_size, stride=self.stride, padding=self.padding, dilation=self.dilation)
        self._init_binary(in_channels, method, expand, window if dims == 2 else None)
        if pad_value not in PAD_VALUES:
            raise ValueError(f'pad_value must be -1, 0 or 1, but got {pad_value!r}')
        if pad_value != 0 and not (self.activation.signed and self.activation.bits == 1):
            raise ValueError(f'pad_value={pad_value} needs -1/+1 activations; the method {method!r} has others: use 0')
        self.pad_value = pad_value
        # With no affine part the norm only moves the threshold to the running mean.
        self.pre_norm = PRE_NORMS[dims - 1](in_channels, affine=False) if pre_norm else None
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
        check_dims(self, input)
        if self.pre_norm is not None:
            input = self.pre_norm(input)
        acc, scale = self._product(input, weight, alone=factor is None)
        return self._epilogue(input, acc, scale, bias, factor)

    _multiply = convolve_levels

    def extra_repr(self) -> str:
        expand = '' if self.expand is None else f', {self.expand.text()}'
        return f'{super().extra_repr()}, method={self.method!r}, pad_value={self.pad_value}{expand}'


def check_dims(conv, x: Tensor) -> None:
    """Raise ``ValueError`` for an input without a batch or of other dimensions."""
    dims = len(conv.kernel_size)
    if x.ndim != dims + 2:
        axes = ('L', 'H, W', 'D, H, W')[dims - 1]
        raise ValueError(f'{type(conv).__name__} takes [N, C, {axes}], but got {tuple(x.shape)}')


class BinaryConv2d(BinaryConv, nn.Conv2d):
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

    @property
    def plain(self) -> bool:
        """Whether a call is this class's own, with nothing before the sign."""
        return type(self) is BinaryConv2d and 'forward' not in vars(self) and self.pre_norm is None


class BinaryConv1d(BinaryConv, nn.Conv1d):
    """:class:`BinaryConv2d` over a sequence, ``[N, C, L]`` -> ``[N, O, L']``; packed, it is a convolution of height 1.

    Example:
        >>> BinaryConv1d(16, 32, 3, padding=1, method='xnor')(torch.randn(2, 16, 10)).shape
        torch.Size([2, 32, 10])
    """


class BinaryConv3d(BinaryConv, nn.Conv3d):
    """:class:`BinaryConv2d` over a video, ``[N, C, D, H, W]`` -> ``[N, O, D', H', W']``; packed, it is a sum of convolutions
    over images, one for each step in time.

    Example:
        >>> BinaryConv3d(16, 32, 3, padding=1, method='xnor')(torch.randn(2, 16, 4, 8, 8)).shape
        torch.Size([2, 32, 4, 8, 8])
    """


class BinaryConvTranspose2d(BinaryLayer, nn.ConvTranspose2d):
    r"""A transposed convolution of quantized activations with quantized weights; arguments of ``nn.ConvTranspose2d`` and
    ``method``.

    The formula is that of :class:`BinaryConv2d` with :math:`\circledast` transposed. Between the inputs and outside of them
    there is nothing, which does not count: it has no ``pad_value``. A filter of the method (its scale, its mean) is what one
    output channel is computed with, ``weight[:, o]``.

    Shape: ``[N, C, H, W]`` -> ``[N, O, H', W']``.

    Raises:
        ValueError: for an unknown method or option, and, at the first training step, when all inputs have the same sign.

    Example:
        >>> BinaryConvTranspose2d(16, 32, 2, stride=2, method='xnor')(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 32, 14, 14])
    """

    channel_dim = 1

    @checked_arguments
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1, bias=True,
                 dilation=1, padding_mode='zeros', device=None, dtype=None, *, method: str | dict = 'reactnet'):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation,
                         padding_mode, device, dtype)
        self._init_binary(in_channels, method, None)
        self.to(device=device, dtype=dtype)

    @property
    def filters(self) -> Tensor:
        return transpose_weight(self.weight, self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        check_dims(self, input)
        weight_levels, scale = self.weight_binarizer(self.filters)
        acc = self._multiply(self._levels(input), weight_levels, added_outputs(self, input, output_size))
        return self._epilogue(input, acc, scale, self.bias)

    def _multiply(self, levels: Tensor, weight_levels: Tensor, output_padding: list[int] | None = None) -> Tensor:
        return transpose_levels(self, levels, weight_levels, output_padding or self.output_padding)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, method={self.method!r}'


def added_outputs(conv, x: Tensor, output_size: list[int] | None) -> list[int]:
    """``output_padding`` of a latent or packed transposed convolution, for the size of its output that was asked for."""
    return nn.ConvTranspose2d._output_padding(conv, x, output_size, conv.stride, conv.padding, conv.kernel_size, 2,
                                              conv.dilation)
