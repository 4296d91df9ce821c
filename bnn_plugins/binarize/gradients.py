"""Quantization of gradients."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ['quantize_gradient']


class _QuantizeGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        top = 2**ctx.bits - 1
        wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
        span = 2 * wide.abs().amax(tuple(range(1, grad.ndim)), keepdim=True)
        unit = wide / span.clamp(min=torch.finfo(wide.dtype).tiny) + 0.5  # zeros stay zeros: span multiplies them again
        noise = (torch.rand_like(wide) - 0.5) / top
        level = ((unit + noise) * top).round().clamp(0, top)
        return (span * (level / top - 0.5)).to(grad.dtype), None


def quantize_gradient(x: Tensor, bits: int) -> Tensor:
    r"""Identity; the gradient is rounded stochastically to ``bits`` bits.

    .. math:: \tilde{dr} = 2\max|dr|\left(q_k\left(\frac{dr}{2\max|dr|} + \frac12 + \frac{u}{2^k - 1}\right) - \frac12\right)

    with :math:`u` uniform in [-1/2, 1/2] and the maximum over each sample (all but the first dimension), so its expectation is
    the gradient. Source: Zhou et al. 2016 (DoReFa-Net), arXiv 1606.06160, eq. 12.
    """
    return _QuantizeGradient.apply(x, bits)
