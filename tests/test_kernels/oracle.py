"""What the operators must return, without bnn_kernels: float64 convolutions of signs, words built from Python ints."""

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional as F

SEEDS = st.integers(0, 2**32 - 1)


def values(seed: int, *shape: int) -> torch.Tensor:
    """Float32 with exact zeros, negative zeros and repeated magnitudes, so that thresholds are met exactly now and then."""
    draw = np.random.default_rng(seed).choice([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, 1e-45, -1e-45], size=shape)
    return torch.from_numpy(np.ascontiguousarray(draw, dtype=np.float32))


def signs(x: torch.Tensor, threshold: torch.Tensor | None = None) -> torch.Tensor:
    """Float64 -1 and +1 of `x` [N, C, ...] (threshold [C] or one element), by numpy."""
    tau = np.float64(0) if threshold is None else threshold.double().numpy().reshape([-1] + [1] * (x.dim() - 2))
    return torch.from_numpy(np.where(x.double().numpy() >= tau, 1.0, -1.0))


def words(signs_of_a_row: list[float], groups: int = 1) -> list[int]:
    """The int32 words of one row of channels, bit by bit."""
    size = len(signs_of_a_row) // groups
    row = []
    for group in range(groups):
        bits = [int(s > 0) for s in signs_of_a_row[group * size:(group + 1) * size]]
        for start in range(0, size, 32):
            word = sum(bit << place for place, bit in enumerate(bits[start:start + 32]))
            row.append(word - 2**32 if word >= 2**31 else word)  # two's complement
    return row


def conv2d(x: torch.Tensor, weight: torch.Tensor, stride, padding, dilation, groups, pad_value) -> torch.Tensor:
    """Int32 [N, O, H', W'] of float `x` [N, C, H, W] and `weight` [O, C / groups, kH, kW]."""
    vertical, horizontal = padding
    image = F.pad(signs(x), (horizontal, horizontal, vertical, vertical), value=pad_value)
    return F.conv2d(image, signs(weight), None, stride, 0, dilation, groups).to(torch.int32)


def conv_transpose2d(x: torch.Tensor, weight: torch.Tensor, stride, padding, output_padding, dilation, groups) -> torch.Tensor:
    """Int32 [N, O, H', W'] of float `x` [N, C, H, W] and `weight` [C, O / groups, kH, kW]."""
    y = F.conv_transpose2d(signs(x), signs(weight), None, stride, padding, output_padding, groups, dilation)
    return y.to(torch.int32)


def xnor_dot(left: list[int], right: list[int], terms: int) -> int:
    """K - 2 * popcount(x ^ w) over the words of one row."""
    return terms - 2 * sum(((a ^ b) & 0xFFFFFFFF).bit_count() for a, b in zip(left, right, strict=True))


def and_dot(left: list[int], right: list[int], terms: int) -> int:
    """4 D - 2 SA - 2 SW + K with D = popcount(x & w), SA = popcount(x), SW = popcount(w)."""
    count = [0, 0, 0]
    for a, b in zip(left, right, strict=True):
        a, b = a & 0xFFFFFFFF, b & 0xFFFFFFFF
        count = [count[0] + (a & b).bit_count(), count[1] + a.bit_count(), count[2] + b.bit_count()]
    return 4 * count[0] - 2 * count[1] - 2 * count[2] + terms
