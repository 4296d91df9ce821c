"""Activation binarizers: a real tensor in, its quantization levels out.

A binarizer returns *levels* (-1/+1, or the integers ``0 .. 2**k - 1``) as floats and carries the constant ``step`` that one
level is worth. The layer multiplies by ``step`` after the convolution, so that the convolution is a sum of small integers,
exact in float32, and the packed model computes the same numbers.

``channel_dim`` says where the channels are: 1 for ``[N, C, H, W]``, -1 for ``[..., C]``.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .estimators import Estimator, build_estimator

__all__ = [
    'ActivationBinarizer',
    'BinaryInput',
    'CenteredSign',
    'DoReFaActivation',
    'FloatActivation',
    'RSign',
    'SignActivation',
]


def per_channel(param: Tensor, ndim: int, channel_dim: int) -> Tensor:
    """View ``[C]`` so that it broadcasts over a tensor with ``ndim`` dimensions, the channels at ``channel_dim``."""
    if channel_dim == -1:
        return param
    return param.view(-1, *[1] * (ndim - 1 - channel_dim))


class ActivationBinarizer(nn.Module):
    """Base class.

    Attributes:
        bits (int): bits of one level; 32 means that activations stay real.
        signed (bool): levels are -1/+1; otherwise ``0 .. 2**bits - 1``, or, with ``twos_complement``, the integers of
            ``bits`` bits with a sign.
        step (float): what one level is worth.
    """

    bits = 1
    signed = True
    twos_complement = False
    step = 1.0

    def threshold(self) -> Tensor | None:
        """The value from which on a level is +1, ``[C]``, or ``None`` for 0. Signed binarizers only."""
        return None

    def prepare(self, x: Tensor) -> Tensor:
        """What is compared with the threshold; most binarizers compare their input itself."""
        return x


class FloatActivation(ActivationBinarizer):
    """The identity: activations stay real (weight-only methods)."""

    bits = 32

    def forward(self, x: Tensor) -> Tensor:
        return x


class BinaryInput(ActivationBinarizer):
    """The identity on an input that is -1/+1 already; gradient 1.

    Estimators are made for real inputs: that of Bi-Real Net, ``2 - 2|x|``, is zero at -1 and +1, so whatever lies below a
    second sign would never learn.

    Raises:
        ValueError: at the first call in training, for an input with other values.
    """

    def __init__(self):
        super().__init__()
        self._checked = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self._checked and not torch.compiler.is_compiling():
            self._checked = True
            if not bool((x.detach().abs() == 1).all()):
                raise ValueError('this layer was told that its input is binary, but it has other values than -1 and +1')
        return x


def deviation(centred: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Root of the unbiased variance of centred numbers over ``dims``, which stay; 1 where they do not deviate."""
    count = math.prod([centred.shape[dim] for dim in dims])  # a list: torch.compile
    variance = centred.square().sum(dims, keepdim=True) / max(count - 1, 1)
    return torch.where(variance > 0, variance, 1.0).sqrt()


class SignOperand(NamedTuple):
    """What a sign is taken of: ``x + shift`` per channel, whose gradient is that of ``x`` over the deviation of its sample
    where ``standardize``."""

    x: Tensor
    shift: Tensor | None = None
    standardize: bool = False


class SignActivation(ActivationBinarizer):
    r"""Forward: :math:`\mathrm{sign}(x)`. Gradient: that of the estimator.

    Args:
        estimator: name, ``dict(type=name, ...)`` or :class:`Estimator`.
        standardize: in training, first divide by the standard deviation over all but the batch dimension; the sign stays,
            the gradient is scaled. Source: ReCU's released code (Xu et al. 2021, arXiv 2103.12369).
    """

    channel_dim: int = 1

    def __init__(self, estimator: str | dict | Estimator = 'approx_sign', standardize: bool = False):
        super().__init__()
        self.estimator = build_estimator(estimator)
        self.standardize = standardize

    def operand(self, x: Tensor) -> SignOperand:
        """What the sign is taken of. A subclass changes this, not :meth:`forward`."""
        # One number has no deviation.
        return SignOperand(x, standardize=self.standardize and self.training and x.numel() > len(x))

    def forward(self, x: Tensor) -> Tensor:
        x, shift, standardize = self.operand(x)
        if shift is not None:
            x = x + per_channel(shift, x.ndim, self.channel_dim)
        if standardize:
            dims = tuple(range(1, x.ndim))
            # torch.var is several times slower on a CPU.
            variance = (x - x.mean(dims, keepdim=True)).square().sum(dims, keepdim=True) / (x[0].numel() - 1)
            x = x * (variance + 1e-5).rsqrt()
        return self.estimator(x)


class RSign(SignActivation):
    r"""Sign with a learned threshold per channel. Forward: :math:`\mathrm{sign}(x + \tau_c)`; :math:`\tau` starts at 0.

    Gradient: that of the estimator at :math:`x + \tau_c`, for both; :math:`\partial\tau_c` sums it over the rest.
    Source: Liu et al. 2020 (ReActNet), arXiv 2003.03488, eq. 1.

    Shape: ``[N, C, ...]`` (or ``[..., C]`` with ``channel_dim=-1``), kept.
    """

    def __init__(self, channels: int, estimator: str | dict | Estimator = 'approx_sign', channel_dim: int = 1):
        super().__init__(estimator)
        self.channel_dim = channel_dim
        self.shift = nn.Parameter(torch.zeros(channels))

    def threshold(self) -> Tensor:
        return -self.shift

    def operand(self, x: Tensor) -> SignOperand:
        return SignOperand(x, self.shift)

    def extra_repr(self) -> str:
        return f'channels={self.shift.numel()}'


class CenteredSign(SignActivation):
    r"""Sign of the activation standardised over each sample. Forward: :math:`\mathrm{sign}((x - \mu) / \sigma)`, mean and
    unbiased deviation over all but the batch dimension of ``[N, C, H, W]``, over each row of ``[..., C]``; in training and in
    evaluation, so that the threshold depends on the input.

    Gradient: that of the estimator at the standardised value, then exactly through mean and deviation.
    Source: Lin et al. 2020 (RBNN), arXiv 2009.13055, released code.
    """

    def __init__(self, estimator: str | dict | Estimator = 'training_aware', channel_dim: int = 1):
        super().__init__(estimator)
        self.channel_dim = channel_dim

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        return (-1,) if self.channel_dim == -1 else tuple(range(1, x.ndim))

    def prepare(self, x: Tensor) -> Tensor:
        return x - x.mean(self._dims(x), keepdim=True)

    def operand(self, x: Tensor) -> SignOperand:
        centred = self.prepare(x)
        if not self.training:
            return SignOperand(centred)
        return SignOperand(centred / deviation(centred, self._dims(x)))


class _Round(torch.autograd.Function):
    """Round to the nearest integer; identity gradient."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def round_ste(x: Tensor) -> Tensor:
    """``round(x)`` with the identity as gradient."""
    return _Round.apply(x)


class DoReFaActivation(ActivationBinarizer):
    r"""Forward: :math:`\mathrm{round}((2^k-1)\,\mathrm{clip}(x, 0, 1))`, worth :math:`1/(2^k-1)` each; one bit gives {0, 1}.

    Gradient of the value (level times step): :math:`1_{0 \le x \le 1}`.
    Source: Zhou et al. 2016 (DoReFa-Net), arXiv 1606.06160, eq. 5 and 11.
    """

    signed = False

    def __init__(self, bits: int = 1):
        super().__init__()
        if not 1 <= bits <= 8:
            raise ValueError(f'DoReFa activations take 1 to 8 bits, but got {bits}')
        self.bits = bits
        self.step = 1 / (2 ** bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        return round_ste(x.clamp(0, 1) * (2 ** self.bits - 1))

    def extra_repr(self) -> str:
        return f'bits={self.bits}'
