"""Blocks of binary Transformers: attention, feed-forward network, both with a real-valued stream around every sign."""

from collections.abc import Callable

from torch import Tensor, nn

from .activations import RPReLU
from .attention import BinaryAttention
from .expand import Expansion, spread_copies_, tile
from .tokens import (
    LayerScale,
    PoolBranches,
    TokenNorm,
    TokenUnit,
    average_pool,
    from_windows,
    spread_back,
    to_windows,
)

Norm = Callable[[int], nn.Module]


class BinarySelfAttention(nn.Module):
    """Attention of BinaryViT: a shortcut around every linear layer and around the attention itself.

    ``q, k, v = unit(x)``, ``context = rprelu(norm(attention(q, k, v)) + q + k + v)``, ``out = unit(context)``. With ``pool``
    keys and values are those of means over windows of that size, which pass a unit of their own; they are spread back where
    they are added.

    Args:
        channels, heads: C and the number of heads that divides it.
        pool: side of the windows that become one key; sizes of the map need not be multiples.
        window: side of the windows inside of which tokens attend to each other, 0 for the whole map; with ``pool=1`` only.
        shift: of the grid of windows, to the left and up.
        method, probability: as in :class:`BinaryAttention`.
        norm: ``channels -> module`` on ``[..., C]``.

    Shape: ``[B, H, W, C]``, kept. Source: Le, Li 2023 (BinaryViT), arXiv 2306.16678, and its released code.
    """

    def __init__(self, channels: int, heads: int, pool: int = 1, window: int = 0, shift: int = 0,
                 method: str | dict = 'binaryvit', probability: str | dict = 'elastic', norm: Norm = TokenNorm):
        super().__init__()
        if window and pool > 1:
            raise ValueError(f'keys are pooled (pool={pool}) or windowed (window={window}), not both')
        self.pool, self.window, self.shift = pool, window, shift
        self.reduction = TokenUnit(channels, channels, method, norm) if pool > 1 else None
        self.query, self.key, self.value = (TokenUnit(channels, channels, method, norm) for _ in range(3))
        self.attention = BinaryAttention(channels, heads, method, probability)
        self.norm = norm(channels)
        self.act = RPReLU(channels, channel_dim=-1)
        self.out = TokenUnit(channels, channels, method, norm)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        q = self.query(x)
        if self.reduction is not None:
            x = self.reduction(average_pool(x, self.pool))
        k, v = self.key(x), self.value(x)
        if self.window:
            shift = self.shift if max(height, width) > self.window else 0
            (wq, inside), (wk, _), (wv, _) = (to_windows(t, self.window, shift) for t in (q, k, v))
            context = from_windows(self.attention(wq, wk, wv, inside), self.window, shift, height, width)
        else:
            context = self.attention(*(t.flatten(1, 2) for t in (q, k, v))).view_as(q)
        return self.out(self.act(self.norm(context) + q + spread_back(k + v, self.pool, height, width)))


class BinaryFeedForward(nn.Module):
    r"""Two binary linear layers with shortcuts, ``[..., C]``, kept.

    With ``expand=dict(tau=2)`` the input is tiled ``tau`` times and the hidden width is ``tau * hidden``: ``tau C -> hidden /
    tau`` filters, tiled :math:`\tau^2` times in front of the norm, then ``tau * hidden -> C / tau`` filters, tiled
    :math:`\tau` times. Both layers keep their numbers of weights and operations, every copy has thresholds, norms and RPReLUs
    of its own; the attention and the stream are not touched. Source of the expansion: Shi et al. 2025 (ES-BNN), arXiv
    2503.23709, who have released no code for Transformers: the placement is ours. The rest: BinaryViT, arXiv 2306.16678.

    Args:
        channels, hidden: C and its multiple.
        expand: ``dict(tau=..., spread=...)`` or ``None``.

    Raises:
        ValueError: for groups or a style in ``expand``, and for widths that tau does not divide.
    """

    def __init__(self, channels: int, hidden: int, method: str | dict = 'binaryvit', norm: Norm = TokenNorm,
                 expand: dict | Expansion | None = None):
        super().__init__()
        expand = Expansion.of(expand)
        if expand is not None and (expand.groups > 1 or expand.style != 'es'):
            raise ValueError('the feed-forward network of a Transformer expands with tau and spread only: linear layers have '
                             f'no groups, the stream keeps its width; but got {expand}')
        self.tau = 1 if expand is None else expand.tau
        if channels % self.tau:
            raise ValueError(f'tau={self.tau} must divide the {channels} channels of the stream')
        self.grow = TokenUnit(channels * self.tau, hidden * self.tau, method, norm, expand)
        self.shrink = TokenUnit(hidden * self.tau, channels, method, norm, tiles=self.tau)
        shift = getattr(self.shrink.linear.activation, 'shift', None)
        if expand is not None and shift is not None:  # those of the first layer, it has spread itself
            spread_copies_(shift.data, expand.replicas, expand.spread)

    def forward(self, x: Tensor) -> Tensor:
        return self.shrink(self.grow(tile(x, self.tau, -1)))


class BinaryTransformerBlock(nn.Module):
    """A block of BinaryViT on a map of tokens.

    ``x = x + scale(attention(norm(x)))``, ``n = norm(x)``, ``x = x + scale(feed forward(n)) + pool branches(n)``.

    Args:
        channels, heads, hidden: widths.
        pool, window, shift: see :class:`BinarySelfAttention`.
        branches: sizes of the pool branches, see :class:`PoolBranches`.
        method, probability, norm, expand: as in the parts.

    Shape: ``[B, H, W, C]``, kept. Source: Le, Li 2023 (BinaryViT), arXiv 2306.16678.
    """

    def __init__(self, channels: int, heads: int, hidden: int, pool: int = 1, window: int = 0, shift: int = 0,
                 branches: tuple[int, ...] = (3, 5), method: str | dict = 'binaryvit', probability: str | dict = 'elastic',
                 norm: Norm = TokenNorm, expand: dict | Expansion | None = None):
        super().__init__()
        self.norm1 = norm(channels)
        self.attention = BinarySelfAttention(channels, heads, pool, window, shift, method, probability, norm)
        self.scale1 = LayerScale(channels)
        self.norm2 = norm(channels)
        self.feed_forward = BinaryFeedForward(channels, hidden, method, norm, expand)
        self.scale2 = LayerScale(channels)
        self.branches = PoolBranches(channels, branches)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1(self.attention(self.norm1(x)))
        n = self.norm2(x)
        return x + self.scale2(self.feed_forward(n)) + self.branches(n)
