"""Binary attention: signs of queries, keys and values, bits of probabilities."""

import torch
from torch import Tensor, nn

from ..binarize import ActivationBinarizer, InputSpec, build_method, build_probability
from ..binarize.lookup import checked_arguments
from ..binarize.probabilities import FloatProbability
from .base import output_scale, summation


class BinaryAttention(nn.Module):
    r"""Multi-head attention without projections: signs of queries, keys and values, integer scores, bits of probabilities.

    .. math:: S = Q_q(q)\,Q_k(k)^T, \qquad A = \sum_m \mathrm{step}_m\,[S \ge t_m], \qquad y = s_v\,A\,Q_v(v)

    :math:`S` counts agreeing channels, the integers :math:`t_m` of each query come from the binarizer of the probabilities
    (see :mod:`bnn_plugins.binarize.probabilities`), and :math:`[S \ge t_m]\,Q_v(v)` is a sum of signs. Both products are exact
    in float32, so the packed attention computes the same numbers without a softmax and without :math:`N \times M` floats.

    Scores are scaled by :math:`s = s_q s_k / \sqrt d`, the steps of the activation binarizers (1 for signs) and the channels
    of a head. Gradients of signs are those of the method, gradients of bits those of the probability binarizer.

    Args:
        channels: C, of all heads together.
        heads: divides C.
        method: its activation binarizer takes the signs, with thresholds of their own for q, k and v where it has some.
        probability: a name of :func:`bnn_plugins.binarize.list_probabilities` or ``dict(type=name, **options)``; ``'none'``
            keeps the real softmax.
        real_values: leave the values real; with ``probability='none'`` only.

    The submodule ``logits`` passes on the scaled scores ``[B, heads, N, M]`` wherever a gradient is wanted: a place for hooks
    (distillation).

    Raises:
        ValueError: for heads that do not divide C, a method whose activations are not signs, an unknown probability, or real
            values with binary probabilities.
    """

    channel_dim = -1

    @checked_arguments
    def __init__(self, channels: int, heads: int = 1, method: str | dict = 'binaryvit', probability: str | dict = 'elastic',
                 real_values: bool = False):
        super().__init__()
        if heads < 1 or channels % heads:
            raise ValueError(f'{channels} channels cannot be divided among {heads} heads')
        bundle = build_method(method)
        self.channels, self.heads, self.features = channels, heads, channels // heads
        self.method, self.real_values = method, real_values
        operand = InputSpec(in_channels=channels, channel_dim=-1)
        self.query: ActivationBinarizer = bundle.activation(operand)
        self.key: ActivationBinarizer = bundle.activation(operand)
        self.value: ActivationBinarizer | None = None if real_values else bundle.activation(operand)
        if not (self.query.signed and self.query.bits == 1):
            raise ValueError(f'binary attention takes signs, but the activations of the method {method!r} are not: use one '
                             "such as 'binaryvit' or 'reactnet'")
        self.probability = build_probability(probability, heads)
        self.probability_spec = probability
        if real_values and self.probability.planes:
            raise ValueError("real_values=True keeps nothing but the scores binary: it needs probability='none'")
        self.logits = nn.Identity()

    @property
    def scale(self) -> float | Tensor:
        """Of the softmax: a number, or ``[1]`` where the steps are learned."""
        scale = output_scale(self.query.step, self.key.step, self.features ** -0.5)
        return 1.0 if scale is None else scale

    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        """``[B, N, C]``, ``[B, M, C]``, ``[B, M, C]`` -> ``[B, N, C]``; ``keep``: bool ``[B, M]``, keys that take part, or
        ``[B or 1, N, M]``, those of each query."""
        return attend(self, query, key, value, keep)

    def extra_repr(self) -> str:
        real = ', real values' if self.real_values else ''
        return f'{self.channels}, heads={self.heads}, method={self.method!r}, probability={self.probability_spec!r}{real}'


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, N, C]`` -> ``[B, heads, N, C / heads]``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, heads, N, d]`` -> ``[B, N, heads * d]``."""
    return x.transpose(1, 2).flatten(2)


def integers(layer, acc: Tensor) -> Tensor:
    """Sums as the integers that they are: on a GPU a product may be computed in fewer bits."""
    return acc.round() if acc.is_cuda and not layer.training else acc


def attend(layer, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None) -> Tensor:
    """The attention of a latent layer, and of a packed one whose probabilities are real."""
    q, k = (split_heads(binarizer(x), layer.heads) for binarizer, x in ((layer.query, query), (layer.key, key)))
    v = split_heads(value if layer.value is None else layer.value(value), layer.heads)
    if layer.features > 256 or not layer.training:  # bfloat16 cannot count further; what is evaluated is what the bits compute
        q = q.to(torch.promote_types(q.dtype, torch.float32))
    with torch.autocast(query.device.type, enabled=False):  # thresholds are integers: so must be what they are compared with
        scores = integers(layer, q @ k.transpose(-1, -2).to(q.dtype))
    if keep is not None:
        keep = keep[:, None, None] if keep.ndim == 2 else keep[:, None]
    scale = layer.scale
    real = isinstance(layer.probability, FloatProbability)
    logits = layer.logits(scores * scale) if real or torch.is_grad_enabled() else None
    if real:
        probability = (logits if keep is None else logits.masked_fill(~keep, -1e4)).softmax(-1)
        out = (probability if keep is None else probability * keep).to(v.dtype) @ v
    else:
        sums = []
        for bits in layer.probability(scores, layer.features, scale, keep, logits):
            with summation(layer, v):
                sums.append(integers(layer, bits @ v.to(bits.dtype)))
        out = superpose(layer, sums).to(v.dtype)
    return merge_heads(scaled(layer, out))


def superpose(layer, sums: list[Tensor]) -> Tensor:
    """The sums of values of each plane, ``[B, heads, N, d]``, times what the plane is worth, added in their order."""
    out = None
    for acc, step in zip(sums, layer.probability.steps(), strict=True):
        acc = acc if isinstance(step, float) and step == 1.0 else acc * step
        out = acc if out is None else out + acc
    return out


def scaled(layer, out: Tensor) -> Tensor:
    """Times the step of the values."""
    step = None if layer.value is None else output_scale(layer.value.step)
    return out if step is None else out * step
