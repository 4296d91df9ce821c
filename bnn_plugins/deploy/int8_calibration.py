"""Where the uint8 values of an activation begin and end: from what a layer sees in calibration."""

import torch
from torch import Tensor

from .int8_layers import UNSIGNED

VALUES = 2**14  # of one call that are looked at, and of all calls 64 times as many
SHARE = 0.9999  # of the values that lie inside, of 'percentile'
STEPS = 60  # that 'mse' tries for each end


class Calibrated:
    """The input of one layer, over its calls."""

    def __init__(self):
        self.low = self.high = 0.0  # 0 is always exact: it is what padding means
        self.seen: list[Tensor] = []

    def add(self, x: Tensor, _: Tensor) -> None:
        x = x.detach().float().flatten()
        if not x.numel():
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        self.seen.append(x[::max(1, x.numel() // VALUES)].clone())
        if len(self.seen) > 64:
            self.seen = [torch.cat(self.seen)[::2]]

    def range(self, method: str) -> tuple[float, float]:
        """Both ends, by one of :data:`METHODS`."""
        return METHODS[method](self) if self.seen else (0.0, 0.0)

    def quantization(self, method: str) -> tuple[float, int]:
        """Scale and zero point."""
        low, high = self.range(method)
        scale = (high - low) / UNSIGNED or 1.0
        return scale, round(-low / scale)


def minmax(seen: Calibrated) -> tuple[float, float]:
    return seen.low, seen.high


def percentile(seen: Calibrated) -> tuple[float, float]:
    values = torch.cat(seen.seen).sort().values
    cut = int((1 - SHARE) / 2 * len(values))
    return min(0.0, float(values[cut])), max(0.0, float(values[-1 - cut]))


def mse(seen: Calibrated) -> tuple[float, float]:
    """The least mean squared error of the values, ends cut off one after the other from the whole range on."""
    values = torch.cat(seen.seen)

    def error(low: float, high: float) -> float:
        scale = (high - low) / UNSIGNED or 1.0
        zero = round(-low / scale)
        rounded = (values / scale).round().clamp(-zero, UNSIGNED - zero) * scale
        return float((rounded - values).square().mean())

    low, high = seen.low, seen.high
    for _ in range(2):
        high = min((high * step / STEPS for step in range(STEPS, STEPS // 4, -1)), key=lambda end: error(low, end))
        low = min((low * step / STEPS for step in range(STEPS, STEPS // 4, -1)), key=lambda end: error(end, high))
    return low, high


METHODS = {'minmax': minmax, 'percentile': percentile, 'mse': mse}
