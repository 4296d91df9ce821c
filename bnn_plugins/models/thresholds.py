"""The control experiment of expanding-and-shrinking: a base network whose signs have several thresholds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..binarize import check_keys
from ..layers import spread_copies_


@dataclass(frozen=True)
class MultiThreshold:
    """``expand=dict(style='thresholds', tau=2, spread=0.5)`` of a native backbone.

    The stream keeps the width of the base network. Before each sign it is copied ``tau`` times, each copy with learned
    thresholds of its own, and each of ``tau`` groups of kernels reads one copy: as many weights and operations as the base
    network, as many thresholds as the expanded one, and all the distinct maps that expanding gives up.

    Raises:
        ValueError: for an unknown key and for ``tau`` below 1.
    """

    tau: int = 1
    spread: float = 0.5

    @classmethod
    def of(cls, spec: dict) -> 'MultiThreshold':
        options = {key: value for key, value in spec.items() if key != 'style'}
        check_keys("key of expand with style='thresholds'", options, cls.__dataclass_fields__)
        return cls(**options)

    def __post_init__(self):
        if self.tau < 1:
            raise ValueError(f'expand: tau must be an integer of at least 1, but got {self.tau!r}')


class UntiedThresholds(nn.Module):
    """Copies of the input, tiled, each channel with a learned shift of its own: ``[N, C, H, W]`` -> ``[N, tau C, H, W]``."""

    def __init__(self, channels: int, thresholds: MultiThreshold):
        super().__init__()
        self.copies = thresholds.tau
        self.shift = nn.Parameter(spread_copies_(torch.zeros(channels * self.copies), self.copies, thresholds.spread))

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat(1, self.copies, 1, 1) + self.shift.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f'channels={len(self.shift) // self.copies}, copies={self.copies}'
