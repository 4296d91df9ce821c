r"""Binarizers of attention probabilities: integer scores in, planes of bits out.

With signs :math:`q, k` of :math:`d` channels a score :math:`S_{ij} = q_i \cdot k_j` is an integer, and
:math:`P_{ij} = \mathrm{softmax}_j(s\,S_{ij})` rises with it. So every comparison of :math:`P` with a number of its row is
:math:`S_{ij} \ge t_i` with an *integer* :math:`t_i`: the softmax is needed for gradients only. Each plane of bits follows one
of three rules, those of ``bnn_kernels.binary_attention``, so that latent and packed attention take the same bits:

- ``'bool'``: :math:`S \ge \mathrm{limit}`,
- ``'max_relative'``: :math:`S \ge \max_j S - \mathrm{limit}`,
- ``'elastic'``: :math:`P > \mathrm{limit}`, with exponentials rounded to multiples of :math:`2^{-30}` of the row's largest,
  whose sum is exact in any order.

Plane :math:`m` is worth ``steps()[m]``, so the binary probabilities are :math:`A = \sum_m \mathrm{step}_m\,\mathrm{bit}_m`.
Below, :math:`g = dL/dA`.
"""

import math

import torch
from torch import Tensor, nn

from .elastic import positive
from .lookup import Registry

__all__ = ['BoolProbability', 'ElasticProbability', 'FloatProbability', 'GSBProbability', 'MaxRelativeProbability',
           'MultiPlaneProbability', 'ProbabilityBinarizer', 'build_probability', 'list_probabilities',
           'register_probability']

Rule = tuple[str, Tensor]


class RowScores:
    """Integer thresholds for the scores of each query.

    Args:
        scores: integers as floats, ``[..., N, M]``.
        features: d, channels of a head.
        scale: of the softmax, a number or ``[1]``.
        keep: bool, broadcasts to the scores, ``None`` keeps all keys.
    """

    def __init__(self, scores: Tensor, features: int, scale: float | Tensor, keep: Tensor | None):
        self.scores, self.features, self.scale, self.keep = scores, features, scale, keep
        self.top = (scores if keep is None else scores.masked_fill(~keep, -features)).amax(-1)
        self._table: tuple[Tensor, Tensor] | None = None  # of the exponentials, and the sum of each row

    def threshold(self, rule: str, limit: Tensor) -> Tensor:
        """The smallest score that gives a bit, broadcastable to ``[..., N]``; ``limit``: float64 ``[heads, 1]``."""
        if rule == 'bool':
            return limit.to(self.top.dtype)
        if rule == 'max_relative':
            return self.top - limit.to(self.top.dtype)
        if self._table is None:
            # Where the packed attention makes its table: exponentials of two devices may round differently.
            device = self.scale.device if isinstance(self.scale, Tensor) else None
            steps = torch.arange(self.features + 1, dtype=torch.float64, device=device)
            table = (2.0**30 * torch.exp(-2 * steps * self.scale)).round().to(self.top.device)
            terms = table[((self.top.unsqueeze(-1) - self.scores) / 2).clamp(min=0).long()]
            self._table = table, (terms if self.keep is None else terms * self.keep).sum(-1)
        table, total = self._table
        # How many entries of the falling table are larger than the least: those of the rising one that are smaller.
        return self.top - 2 * (torch.searchsorted(-table, -limit * total) - 1)


class ProbabilityBinarizer(nn.Module):
    """Base class.

    Attributes:
        planes (int): bits of one probability.
    """

    planes = 1

    def steps(self) -> list[Tensor | float]:
        """What a bit of each plane is worth, a number or broadcastable to ``[B, heads, N, D]``."""
        return [1.0]

    def rules(self, scale: float | Tensor) -> list[Rule]:
        """Rule and limit of each plane; limits are float64, ``[1]`` or ``[heads]``. ``scale``: of the softmax."""
        raise NotImplementedError

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        """What takes the place of each plane of bits in the backward pass; ``logits``: scaled scores ``[..., N, M]``."""
        raise NotImplementedError

    def forward(self, scores: Tensor, features: int, scale: float | Tensor, keep: Tensor | None = None,
                logits: Tensor | None = None) -> list[Tensor]:
        """The bits of each plane, ``[..., N, M]`` in the dtype of ``scores``; keys that are not kept have 0.

        Args:
            scores: ``[..., heads, N, M]``, integers.
            features: channels of a head.
            scale: of the softmax, a number or ``[1]``.
            keep: bool, broadcastable, or ``None``.
            logits: ``scores * scale`` with a gradient; ``None`` where none is wanted.
        """
        scores = scores.detach()
        scale = scale.detach() if isinstance(scale, Tensor) else scale
        rows = RowScores(scores, features, scale, keep)
        soft = [None] * self.planes
        if logits is not None:
            # Finite: the softmax of a row without keys must not be NaN.
            soft = self.surrogates(logits if keep is None else logits.masked_fill(~keep, -1e4))
        planes = []
        for (rule, limit), surrogate in zip(self.rules(scale), soft, strict=True):
            threshold = rows.threshold(rule, limit.detach().to(scores.device).unsqueeze(-1))
            bits = scores >= threshold.unsqueeze(-1)
            bits = (bits if keep is None else bits & keep).to(scores.dtype)
            if surrogate is not None:
                surrogate = surrogate if keep is None else surrogate * keep
                bits = bits + (surrogate - surrogate.detach()).to(bits.dtype)
            planes.append(bits)
        return planes


PROBABILITIES = Registry('probability', ProbabilityBinarizer)
register_probability, list_probabilities = PROBABILITIES.register, PROBABILITIES.list


def build_probability(spec: str | dict, heads: int = 1) -> ProbabilityBinarizer:
    """A binarizer from its name or from ``dict(type=name, **options)``; ``heads`` goes to those with numbers per head.

    Errors: see :meth:`.Registry.build`.
    """
    return PROBABILITIES.build(spec, heads=heads)


def near(share: float, scale: float | Tensor, strict: bool = False) -> Rule:
    """Scores whose probability is at least (``strict``: more than) ``share`` times the row's largest: an even distance."""
    reach = torch.full((1,), math.log(1 / share) / 2, dtype=torch.float64)
    reach = reach.to(scale.device) / scale if isinstance(scale, Tensor) else reach / scale
    return 'max_relative', 2 * (reach.ceil() - 1 if strict else reach.floor())


@register_probability('none')
class FloatProbability(ProbabilityBinarizer):
    """No binarizer: the real softmax. Scores may still be integers; the sum over values is a real product."""

    planes = 0

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        raise NotImplementedError('real probabilities have no planes')


@register_probability('bool')
class BoolProbability(ProbabilityBinarizer):
    r"""BiBERT's bool function. Forward: :math:`A = [S > 0]`, no softmax.

    Gradient: :math:`\partial(sS) = g\,1_{|sS| \le 1}`. Source: Qin et al. 2022 (BiBERT), arXiv 2203.06390.
    """

    def rules(self, scale: float | Tensor) -> list[Rule]:
        return [('bool', torch.ones(1, dtype=torch.float64))]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [logits.clamp(-1, 1)]


@register_probability('max_relative')
class MaxRelativeProbability(ProbabilityBinarizer):
    r"""BiViT's softmax-aware binarization. Forward: :math:`A = [P \ge \lambda \max_j P]`, that is
    :math:`[S \ge \max_j S - \ln(1/\lambda)/s]`: for :math:`d = 64, \lambda = 1/4` all within 10 of the largest score.

    Gradient: :math:`\partial P = g`, then that of the softmax. Source: He et al. 2023 (BiViT), arXiv 2211.07091.

    Args:
        share: :math:`\lambda` in (0, 1].
    """

    def __init__(self, share: float = 0.25):
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f'max_relative: share is a part of the largest probability, in (0, 1], but got {share}')
        self.share = share

    def rules(self, scale: float | Tensor) -> list[Rule]:
        return [near(self.share, scale)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [logits.softmax(-1)]

    def extra_repr(self) -> str:
        return f'share={self.share}'


@register_probability('elastic')
class ElasticProbability(ProbabilityBinarizer):
    r"""BiT's unsigned elastic binarizer. Forward: :math:`A = a\,\mathrm{clip}(\mathrm{round}(P/a), 0, 1)`, that is
    :math:`a\,[P > a/2]`, with one learned step :math:`a`.

    Gradient: :math:`\partial P = g\,1_{0 \le P/a \le 1}`, :math:`\partial a = \sum g\,([P > a] + [P \le a](\mathrm{round}(P/a)
    - P/a))`, not scaled, as in BinaryViT. Sources: Liu et al. 2022 (BiT), arXiv 2205.13016; Le, Li 2023 (BinaryViT), arXiv
    2306.16678, which starts at 0.005 for 49 and more keys.

    Args:
        initial: first step; twice the share of an average key, 2 / M, lets about half of the keys through.
    """

    def __init__(self, initial: float = 0.005):
        super().__init__()
        self.size = nn.Parameter(torch.full((1,), initial))

    def steps(self) -> list[Tensor | float]:
        return [positive(self.size)]

    def rules(self, scale: float | Tensor) -> list[Rule]:
        return [('elastic', positive(self.size).double() / 2)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [(logits.softmax(-1) / positive(self.size)).clamp(0, 1)]


@register_probability('multi_plane')
class MultiPlaneProbability(ProbabilityBinarizer):
    r"""BHViT's quantisation decomposition: :math:`n` planes of a thermometer code.

    Forward: :math:`A = \frac an \mathrm{clip}(\mathrm{round}(nP/a), 0, n) = \frac an \sum_{m=1}^n [P > (m - \frac12) a/n]`
    with a learned :math:`a` for each head. The zero point of the paper is left out: it adds the same multiple of the sum of
    all values to every query.

    Gradient: :math:`\partial P = g\,1_{0 \le P/a \le 1}`; :math:`\partial a = \sum g\,(A/a - [P \le a] P/a)`.
    Source: Gao et al. 2025 (BHViT), arXiv 2503.02394, quantization decomposition.
    """

    def __init__(self, heads: int = 1, planes: int = 3, initial: float = 0.02):
        super().__init__()
        if planes < 1:
            raise ValueError(f'multi_plane takes at least one plane, but got {planes}')
        self.planes = planes
        self.size = nn.Parameter(torch.full((heads,), initial))

    def _size(self) -> Tensor:
        return positive(self.size).view(-1, 1, 1)

    def steps(self) -> list[Tensor | float]:
        return [self._size() / self.planes] * self.planes

    def rules(self, scale: float | Tensor) -> list[Rule]:
        unit = positive(self.size).double() / self.planes
        return [('elastic', (plane + 0.5) * unit) for plane in range(self.planes)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        levels = logits.softmax(-1) * (self.planes / self._size())
        return [(levels - plane).clamp(0, 1) for plane in range(self.planes)]

    def extra_repr(self) -> str:
        return f'heads={len(self.size)}, planes={self.planes}'


@register_probability('gsb')
class GSBProbability(ProbabilityBinarizer):
    r"""Group superposition: the elastic plane and two planes of the strongest keys.

    Forward: :math:`A = a\,([P > a/2] + a_2 [P > 0.7 \max_j P] + a_3 [P > 0.9 \max_j P])` with learned :math:`a, a_2, a_3`.

    Gradient: of the first plane as in :class:`ElasticProbability`; of the others :math:`\partial (P / \max_j P) = a\,a_m g`,
    the maximum a constant (our choice); exact for :math:`a_2, a_3`. Source: Gao et al. 2023 (GSB), arXiv 2305.07931, and its
    released code.
    """

    planes = 3
    SHARES = (0.7, 0.9)

    def __init__(self, initial: float = 0.005):
        super().__init__()
        self.size = nn.Parameter(torch.full((1,), initial))
        self.extra = nn.Parameter(torch.full((2,), 0.5))

    def steps(self) -> list[Tensor | float]:
        size = positive(self.size)
        return [size, size * self.extra[0], size * self.extra[1]]

    def rules(self, scale: float | Tensor) -> list[Rule]:
        return [('elastic', positive(self.size).double() / 2), *(near(share, scale, strict=True) for share in self.SHARES)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        probability = logits.softmax(-1)
        relative = probability / probability.detach().amax(-1, keepdim=True)
        return [(probability / positive(self.size)).clamp(0, 1), relative, relative]
