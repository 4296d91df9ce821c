"""A binary convolution that takes more bits of its activations for images that need them, within a budget."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..binarize import DoReFaActivation
from ..binarize.lookup import checked_arguments
from .base import epilogue, output_scale
from .conv import BinaryConv2d, convolve_levels


class AdaptiveConv2d(BinaryConv2d, nn.Conv2d):
    r"""A DoReFa convolution with 1-bit weights whose activations have 1, 2 or 4 bits, chosen image by image.

    All choices share the weights: k bits are k binary convolutions of the planes, so the cost of an image is its number of
    bits. A linear router on the means of the channels (normalised) gives a score per choice,
    ``score_b = router(mean)_b - price * bits_b``, the best one is taken. In training the gradient is that of the softmax of
    the scores (straight-through), and the price follows the budget, ``price += rate * (mean bits - budget)``, so the budget is
    met on average and images compete for it.

    OPs per image are ``MACs * bits / 64``; :attr:`mean_bits` is what the last batch in evaluation took, and
    :func:`bnn_plugins.summarize` counts with it.

    Args:
        bits: the choices, ascending.
        budget: mean number of bits, between the first and the last choice.
        rate: step of the price. The rest as in ``nn.Conv2d``.

    Shape: ``[N, C, H, W]`` -> ``[N, O, H', W']``.

    Raises:
        ValueError: for a budget outside of the choices.
    """

    @checked_arguments
    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                 padding_mode='zeros', device=None, dtype=None, *, bits: tuple[int, ...] = (1, 2, 4), budget: float = 2.0,
                 rate: float = 0.05):
        bits = tuple(bits)
        if list(bits) != sorted(set(bits)) or not bits:
            raise ValueError(f'bits must be different and ascending, such as (1, 2, 4), but got {bits}')
        if not bits[0] <= budget <= bits[-1]:
            raise ValueError(f'the budget is a mean number of bits between {bits[0]} and {bits[-1]}, but got {budget}')
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode,
                         device, dtype, method=dict(type='dorefa', a_bits=bits[-1]))
        self.choices = nn.ModuleList(DoReFaActivation(b) for b in bits)
        self.router = nn.Linear(in_channels, len(bits), device=device, dtype=dtype)
        self.register_buffer('costs', torch.tensor(bits, dtype=torch.float32, device=device), persistent=False)
        self.register_buffer('price', torch.zeros((), device=device))
        self.budget, self.rate, self.mean_bits = budget, rate, float(bits[-1])

    def scores(self, x: Tensor) -> Tensor:
        """``[N, choices]``."""
        return route(self, x)

    def through_norm(self, norm: nn.Module):
        raise ValueError(f'{self}: the norm behind an adaptive convolution cannot be folded into it')

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, factor: None = None) -> Tensor:
        levels, scale = self.weight_binarizer(weight)
        if not self.training:
            return spend(self, input, lambda x, act: convolve_levels(self, act(x), levels), scale)
        scores = self.scores(input)
        soft = scores.softmax(1)
        hard = F.one_hot(scores.argmax(1), len(self.choices)).to(soft.dtype)
        with torch.no_grad():
            if len(input):
                self.price += self.rate * ((hard @ self.costs).mean() - self.budget)
        share = (hard + (soft - soft.detach())).to(input.dtype)
        out = sum(share[:, i, None, None, None] * epilogue(convolve_levels(self, act(input), levels),
                                                           output_scale(scale, act.step), None, 1)
                  for i, act in enumerate(self.choices))
        return epilogue(out, None, bias, 1)

    def extra_repr(self) -> str:
        return f'{super().extra_repr()}, bits={tuple(act.bits for act in self.choices)}, budget={self.budget}'


def route(layer, x: Tensor) -> Tensor:
    """The scores of a latent or packed adaptive layer, ``[N, choices]``, never rounded by autocast."""
    with torch.autocast(x.device.type, enabled=False):
        mean = x.to(layer.router.weight.dtype).mean((2, 3))
        return layer.router(F.layer_norm(mean, mean.shape[1:])) - layer.price * layer.costs


def spend(layer, x: Tensor, accumulate, scale: Tensor | None) -> Tensor:
    """The output of a latent or packed adaptive layer in evaluation: each image runs with its own number of bits only."""
    chosen = route(layer, x).argmax(1)
    layer.mean_bits = layer.costs[chosen].mean() if len(x) else layer.costs[0]  # a tensor: a number would wait for the device
    parts = [(chosen == i).nonzero()[:, 0] for i in range(len(layer.choices))]
    outputs = [epilogue(accumulate(x[part], act), output_scale(scale, act.step), None, 1)
               for part, act in zip(parts, layer.choices, strict=True)]
    out = torch.cat(outputs)[torch.cat(parts).argsort()]
    return epilogue(out, None, layer.bias, 1)
