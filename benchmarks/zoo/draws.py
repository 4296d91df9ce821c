"""Small random inputs of a batch of two."""

import torch
from torch import Tensor

BATCH = 2


def real(*shape: int) -> Tensor:
    return torch.randn(BATCH, *shape)


def whole(*shape: int, most: int = 8) -> Tensor:
    return torch.randint(0, most, (BATCH, *shape))


def steps() -> Tensor:
    return torch.tensor([500.0, 300.0])


def ones(*shape: int) -> Tensor:
    return torch.ones(BATCH, *shape)
