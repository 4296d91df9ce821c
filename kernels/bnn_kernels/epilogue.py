"""What follows the accumulator in a fused convolution, and its arithmetic: the one place that says in which order.

Every operation is IEEE float32 and rounded by itself, without FMA contraction, so that all backends agree bit for bit:

    v = float(acc[j % O]) * scale[j]
    v = v + bias[j]
    v = v + float(shortcut)                           where there is one
    v = v - gamma[j];  v = v if v > 0 else slope[j] * v;  v = v + zeta[j]       'prelu', gamma and zeta optional
    v = max(v, 0)                                                               'relu'
    v = min(max(v, -1), 1)                                                      'hardtanh'
    v = v / (1 + exp(-v))                                                       'silu', see `silu`
    stream = v rounded to its dtype
    bit    = float(stream) >= threshold[j]
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .layout import pack_bits

ACTS = ('identity', 'prelu', 'relu', 'hardtanh', 'silu')
# Of `exp`: the ends that its argument is cut to, 1 / log(2), 3 * 2**22, log(2) in two parts of which a whole number up to 127
# times the first is exact, and the polynomial of Cephes' expf for half of log(2) either way (Moshier, netlib.org/cephes).
LEAST, MOST, LOG2_E, STEPS_OF_ONE = -87.0, 88.0, 1.44269504088896341, 12582912.0
LOG_2 = (0.693359375, -2.12194440e-4)
POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


class Epilogue(NamedTuple):
    """Per-channel parameters of a fused convolution, float32 `[P]` each, P = replicas * O.

    Channel j of the output is made from accumulator j % O. More channels than accumulators are the replicas of
    expanding-and-shrinking (tau^2 * groups of them, each with its own affine); everybody else has P = O.

    Attributes:
        scale, bias: the affine, a scale, a bias and a norm folded into one.
        act: 'identity', 'relu', 'hardtanh', 'silu' or 'prelu', with `slope`; RPReLU adds the shifts `gamma` before and `zeta`
            after.
        threshold: of the next layer's sign; None is 0.
        out_groups: groups of the convolution that reads the words.
    """

    scale: Tensor
    bias: Tensor
    act: str = 'identity'
    gamma: Tensor | None = None
    slope: Tensor | None = None
    zeta: Tensor | None = None
    threshold: Tensor | None = None
    out_groups: int = 1

    @property
    def width(self) -> int:
        """P, the output channels."""
        return self.scale.numel()

    def vectors(self) -> dict[str, Tensor | None]:
        """The parameters that are tensors, by name."""
        return dict(scale=self.scale, bias=self.bias, gamma=self.gamma, slope=self.slope, zeta=self.zeta,
                    threshold=self.threshold)


def stream_of(acc: Tensor, epilogue: Epilogue, shortcut: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The module's formula up to `stream`: int32 `[N, O, H, W]` to `[N, P, H, W]` of `dtype`."""
    scale, bias, act, gamma, slope, zeta, *_ = epilogue
    v = replicate(acc, epilogue.width).float() * _image(scale)
    v = v + _image(bias)
    if shortcut is not None:
        v = v + shortcut.float()
    if act == 'prelu':
        assert slope is not None, 'as the checks require'
        v = v if gamma is None else v - _image(gamma)
        v = torch.where(v > 0, v, _image(slope) * v)
        v = v if zeta is None else v + _image(zeta)
    elif act == 'relu':
        v = v.clamp(min=0)
    elif act == 'hardtanh':
        v = v.clamp(-1, 1)
    elif act == 'silu':
        v = silu(v)
    return v.to(dtype)


def silu(v: Tensor) -> Tensor:
    """x / (1 + exp(-x)) of float32, within 3 units of the last place of a normal result, in operations that all backends have.

    A number added to 3 * 2**22 is rounded to a whole one, whose bits are the lowest of the sum: shifted, they are added to the
    exponent of the polynomial.
    """
    x = (0.0 - v).clamp(LEAST, MOST)
    steps = x * LOG2_E + STEPS_OF_ONE
    whole = steps - STEPS_OF_ONE
    rest = x - whole * LOG_2[0]
    rest = rest - whole * LOG_2[1]
    power = torch.full_like(rest, POLYNOMIAL[0])
    for factor in POLYNOMIAL[1:]:
        power = power * rest + factor
    power = power * (rest * rest) + rest + 1.0
    power = (power.view(torch.int32) + (steps.view(torch.int32) << 23)).view(torch.float32)
    return v / (1.0 + power)


def words_of(stream: Tensor, epilogue: Epilogue) -> Tensor:
    """The module's last line: `[N, P, H, W]` to int32 `[N, H, W, out_groups * words]`."""
    threshold = 0 if epilogue.threshold is None else epilogue.threshold
    return pack_bits(stream.float().permute(0, 2, 3, 1) >= threshold, epilogue.out_groups)


def replicate(acc: Tensor, channels: int) -> Tensor:
    """`[N, O, H, W]` to `[N, channels, H, W]`: the accumulators tiled, channel j from j % O."""
    return acc.repeat(1, channels // acc.shape[1], 1, 1)


def _image(vector: Tensor) -> Tensor:
    return vector.view(-1, 1, 1)
