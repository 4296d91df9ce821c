"""Rows and columns of a map as sequences."""

import torch
from torch import Tensor, nn

from .lstm import BinaryLSTM


class BinaryScan2d(nn.Module):
    """Mixes the positions of a map: a bidirectional LSTM down and up each column, another along each row.

    Each of the four directions has a quarter of the channels, so that all of them together are as wide as the input. Source:
    Tatsunami and Taki 2022 (Sequencer), arXiv 2205.01972, sec. 3.2, without the linear layer behind.

    Args:
        channels (int): C, divisible by 4. the others: of :class:`BinaryLSTM`.

    Shape: ``[N, C, H, W]``, kept.

    Raises:
        ValueError: for channels that are no multiple of 4.
    """

    def __init__(self, channels: int, **options):
        super().__init__()
        if channels % 4:
            raise ValueError(f'the channels of BinaryScan2d go to four directions: {channels} is no multiple of 4')
        self.columns, self.rows = (BinaryLSTM(channels, channels // 4, bidirectional=True, **options) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        count, _, height, width = x.shape
        columns, _ = self.columns(x.permute(2, 0, 3, 1).flatten(1, 2))  # [H, N W, C]
        rows, _ = self.rows(x.permute(3, 0, 2, 1).flatten(1, 2))  # [W, N H, C]
        return torch.cat([columns.view(height, count, width, -1).permute(1, 3, 0, 2),
                          rows.view(width, count, height, -1).permute(1, 3, 2, 0)], 1)
