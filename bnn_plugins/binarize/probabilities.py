r"""Binarizers of attention probabilities: integer scores in, planes of bits out.

With signs :math:`q, k` of :math:`d` channels a score :math:`S_{ij} = q_i \cdot k_j` is an integer, and
:math:`P_{ij} = \mathrm{softmax}_j(s\,S_{ij})` rises with it. So every comparison of :math:`P` with a number of its row is
:math:`S_{ij} \ge t_i` with an *integer* :math:`t_i`: the softmax is needed for gradients only. A binarizer says what
:math:`t_i` is, from the largest score of the row and from sums over the row of a table of integers, which are exact in any
order; latent and packed attention ask the same code, so they take the same bits.

Levels are bits {0, 1}; plane :math:`m` is worth ``steps()[m]``, so the binary probabilities are
:math:`A = \sum_m \mathrm{step}_m\,[S \ge t_m]`. Below, :math:`g = dL/dA`.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .elastic import positive
from .lookup import check_keys, unknown

__all__ = ['BoolProbability', 'ElasticProbability', 'FloatProbability', 'GSBProbability', 'MaxRelativeProbability',
           'MultiPlaneProbability', 'ProbabilityBinarizer', 'RowScores', 'build_probability', 'list_probabilities']

# exp(0) in the table of integers: sums over fewer than 2**23 keys are exact in float64.
UNIT = 2.0**30


@dataclass(frozen=True)
class RowScores:
    """What is known about the scores of each query.

    Attributes:
        features: :math:`d`; scores have its parity.
        top: the largest score of the keys that are kept, float ``[..., N]`` (0 in rows without any).
        total: sums ``table[(top - score) / 2]`` over the keys that are kept, for a float64 table ``[d + 1]`` of integers;
            float64 ``[..., N]``, exact.
    """

    features: int
    top: Tensor
    total: Callable[[Tensor], Tensor]

    @classmethod
    def of_scores(cls, scores: Tensor, keep: Tensor | None, features: int) -> 'RowScores':
        """From all scores, ``[..., N, M]`` (integers as floats); ``keep``: bool, broadcasts to them, ``None`` keeps all."""
        top = (scores if keep is None else scores.masked_fill(~keep, -features)).amax(-1)
        if keep is not None:
            top = torch.where(keep.any(-1), top, 0)

        def total(table: Tensor) -> Tensor:
            values = table[((top.unsqueeze(-1) - scores) / 2).clamp(min=0).long()]
            return (values if keep is None else values * keep).sum(-1)

        return cls(features, top, total)

    @classmethod
    def of_counts(cls, counts: Tensor, features: int) -> 'RowScores':
        """From how many keys have 0, 1, ..., d channels of another sign than the query, ``[..., N, d + 1]``."""
        found = counts > 0
        nearest = found.to(torch.uint8).argmax(-1)
        top = torch.where(found.any(-1), features - 2 * nearest, 0)
        behind = (torch.arange(features + 1, device=counts.device) - nearest.unsqueeze(-1)).clamp(min=0)
        return cls(features, top, lambda table: (counts * table[behind]).sum(-1))


def exp_table(features: int, scale: float | Tensor, device: torch.device | None = None) -> Tensor:
    r"""``round(2**30 exp(-2 k scale))`` for ``k = 0 .. d``, float64: :math:`e^{sS}` over that of the largest score."""
    steps = torch.arange(features + 1, dtype=torch.float64, device=device)
    return (UNIT * torch.exp(-2 * steps * scale)).round()


class ProbabilityBinarizer(nn.Module):
    """Base class.

    Attributes:
        planes (int): bits of one probability.
    """

    planes = 1

    def steps(self) -> list[Tensor | float]:
        """What a bit of each plane is worth, a number or broadcastable to ``[B, heads, N, D]``."""
        return [1.0]

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        """The integer thresholds of each plane, as floats ``[..., N]`` or broadcastable to that."""
        raise NotImplementedError

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        """What takes the place of each plane of bits in the backward pass; ``logits``: scaled scores ``[..., N, M]``."""
        raise NotImplementedError

    def forward(self, scores: Tensor, features: int, scale: float | Tensor, keep: Tensor | None = None,
                logits: Tensor | None = None) -> Iterator[Tensor]:
        """Yields the bits of each plane, ``[..., N, M]`` in the dtype of ``scores``; keys that are not kept have 0.

        Args:
            scores: ``[..., N, M]``, integers. features: channels of a head. scale: of the softmax, a number or one element.
            keep: bool, broadcastable, or ``None``. logits: ``scores * scale`` with a gradient; ``None`` where none is wanted.
        """
        scores = scores.detach()
        scale = scale.detach() if isinstance(scale, Tensor) else scale
        thresholds = self.thresholds(RowScores.of_scores(scores, keep, features), scale)
        soft = [None] * self.planes
        if logits is not None:
            # Finite: the softmax of a row without keys must not be NaN.
            soft = self.surrogates(logits if keep is None else logits.masked_fill(~keep, -1e4))
        for threshold, surrogate in zip(thresholds, soft, strict=True):
            bits = scores >= threshold.unsqueeze(-1)
            bits = (bits if keep is None else bits & keep).to(scores.dtype)
            if surrogate is not None:
                surrogate = surrogate if keep is None else surrogate * keep
                bits = bits + (surrogate - surrogate.detach()).to(bits.dtype)
            yield bits

    def _above(self, rows: RowScores, scale: float | Tensor, bound: Tensor) -> Tensor:
        """The smallest score whose probability is larger than ``bound`` (float64, broadcastable to ``[..., N]``)."""
        table = exp_table(rows.features, scale, rows.top.device)
        least = bound.double() * rows.total(table)
        # How many entries of the falling table are larger: those smaller than -least in the rising one.
        reach = torch.searchsorted(-table, -least.contiguous()) - 1
        return rows.top - 2 * reach

    def _near(self, rows: RowScores, scale: float | Tensor, share: float, strict: bool) -> Tensor:
        """The smallest score whose probability is at least (``strict``: more than) ``share`` times the row's largest."""
        reach = torch.as_tensor(math.log(1 / share) / 2, dtype=torch.float64, device=rows.top.device) / scale
        return rows.top - 2 * (reach.ceil() - 1 if strict else reach.floor()).to(rows.top.dtype)


class FloatProbability(ProbabilityBinarizer):
    """No binarizer: the real softmax. Scores may still be integers; the sum over values is a real product."""

    planes = 0

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        raise NotImplementedError('real probabilities have no planes')


class BoolProbability(ProbabilityBinarizer):
    r"""BiBERT's bool function. Forward: :math:`A = [S > 0]`, no softmax.

    Gradient: :math:`\partial(sS) = g\,1_{|sS| \le 1}`. Source: Qin et al. 2022 (BiBERT), arXiv 2203.06390.
    """

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        return [torch.ones_like(rows.top)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [logits.clamp(-1, 1)]


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

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        return [self._near(rows, scale, self.share, strict=False)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [logits.softmax(-1)]

    def extra_repr(self) -> str:
        return f'share={self.share}'


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

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        return [self._above(rows, scale, positive(self.size).detach() / 2)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        return [(logits.softmax(-1) / positive(self.size)).clamp(0, 1)]


class MultiPlaneProbability(ProbabilityBinarizer):
    r"""BHViT's quantisation decomposition: :math:`n` planes of a thermometer code.

    Forward: :math:`A = \frac an \mathrm{clip}(\mathrm{round}(nP/a), 0, n) = \frac an \sum_{m=1}^n [P > (m - \frac12) a/n]`
    with a learned :math:`a` for each head. The zero point of the paper is left out: it adds the same multiple of the sum of
    all values to every query.

    Gradient: :math:`\partial P = g\,1_{0 \le P/a \le 1}`; :math:`\partial a = \sum g\,(A/a - \min(P/a, 1))`.
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

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        unit = positive(self.size).detach().double().view(-1, 1) / self.planes
        return [self._above(rows, scale, (plane + 0.5) * unit) for plane in range(self.planes)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        levels = logits.softmax(-1) * (self.planes / self._size())
        return [(levels - plane).clamp(0, 1) for plane in range(self.planes)]

    def extra_repr(self) -> str:
        return f'heads={len(self.size)}, planes={self.planes}'


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

    def thresholds(self, rows: RowScores, scale: float | Tensor) -> list[Tensor]:
        return [self._above(rows, scale, positive(self.size).detach() / 2),
                *(self._near(rows, scale, share, strict=True) for share in self.SHARES)]

    def surrogates(self, logits: Tensor) -> list[Tensor]:
        probability = logits.softmax(-1)
        relative = probability / probability.detach().amax(-1, keepdim=True)
        return [(probability / positive(self.size)).clamp(0, 1), relative, relative]


_PROBABILITIES: dict[str, type[ProbabilityBinarizer]] = {
    'elastic': ElasticProbability,
    'bool': BoolProbability,
    'max_relative': MaxRelativeProbability,
    'multi_plane': MultiPlaneProbability,
    'gsb': GSBProbability,
    'none': FloatProbability,
}


def list_probabilities() -> list[str]:
    """Names that ``probability=`` of an attention accepts."""
    return list(_PROBABILITIES)


def build_probability(spec: str | dict, heads: int = 1) -> ProbabilityBinarizer:
    """A binarizer from its name or from ``dict(type=name, **arguments)``; ``heads`` goes to those with numbers per head.

    Raises:
        ValueError: for an unknown name or argument; the nearest known one is named.
    """
    options = {'type': spec} if isinstance(spec, str) else dict(spec)
    name = options.pop('type', None)
    if name not in _PROBABILITIES:
        raise ValueError(unknown('probability', name, _PROBABILITIES))
    cls = _PROBABILITIES[name]
    known = list(inspect.signature(cls).parameters)
    check_keys(f'argument of the probability {name!r}', options, known)
    if 'heads' in known:
        options.setdefault('heads', heads)
    return cls(**options)
