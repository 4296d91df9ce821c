"""Sigmoid focal loss: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, arXiv:1708.02002, eq. 5.

With p = sigmoid(x), q = 1 - p::

    x is the logit of the target class:  L = -alpha * q^gamma * log p        dL/dx = -alpha * q^gamma * (q - gamma * p * log p)
    any other class:              L = -(1 - alpha) * p^gamma * log q   dL/dx = -(1 - alpha) * p^gamma * (gamma * q * log q - p)

The logarithms come from log-sigmoid. mmcv's CUDA kernel takes the logarithm of q rounded to zero and clamped, which
is wrong for float32 logits beyond about 16; apart from those the two agree.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def _parts(input: Tensor, target: Tensor):
    """The question 'is this the target class' and p, q, log p, log q, all (N, C)."""
    hit = target[:, None] == torch.arange(input.size(1), device=input.device)
    return hit, input.sigmoid(), (-input).sigmoid(), logsigmoid(input), logsigmoid(-input)


def _write(out: Tensor, value: Tensor, target: Tensor, weight: Tensor) -> None:
    out.copy_(value * weight[target][:, None] if weight.numel() else value)


@torch.no_grad()
def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Element-wise loss.

    Args:
        input: (N, C) logits.
        target: (N,) int64 in [0, C]; C is background: no class is hit.
        weight: (C,) per target class, or empty.
        output: (N, C), written.
    """
    hit, p, q, log_p, log_q = _parts(input, target)
    _write(output, torch.where(hit, -alpha * q**gamma * log_p, -(1 - alpha) * p**gamma * log_q), target, weight)


@torch.no_grad()
def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of every element of the loss by its logit, written to ``grad_input`` (N, C)."""
    hit, p, q, log_p, log_q = _parts(input, target)
    positive = -alpha * q**gamma * (q - gamma * p * log_p)
    negative = -(1 - alpha) * p**gamma * (gamma * q * log_q - p)
    _write(grad_input, torch.where(hit, positive, negative), target, weight)
