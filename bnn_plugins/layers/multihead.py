"""``nn.MultiheadAttention`` in parts, so that its projections are layers like others."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import BinaryAttention, merge_heads, split_heads

PROJECTIONS = ('q_proj', 'k_proj', 'v_proj')


def split_names(prefix: str, leaf: str) -> list[str]:
    """How the parameter ``prefix + leaf`` of an ``nn.MultiheadAttention`` is called in its place: a name for each part."""
    if leaf in ('in_proj_weight', 'in_proj_bias'):
        return [f'{prefix}{projection}.{leaf.removeprefix("in_proj_")}' for projection in PROJECTIONS]
    projection = leaf.removesuffix('_weight')  # of queries, keys and values of different widths
    return [f'{prefix}{projection}.weight' if projection in PROJECTIONS and leaf != projection else f'{prefix}{leaf}']


def split_tensors_(state_dict: dict[str, Tensor], prefix: str) -> None:
    """Split the tensors of an ``nn.MultiheadAttention`` whose names begin with ``prefix``, in place."""
    for key in [key for key in state_dict if key.startswith(prefix)]:
        names = split_names(prefix, key.removeprefix(prefix))
        if names != [key]:
            parts = state_dict.pop(key).chunk(len(names))
            state_dict.update(zip(names, (part.clone() for part in parts), strict=True))


class SplitMultiheadAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, with four linear layers ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``.

    torch keeps the first three in one parameter and reads the weight of the fourth without calling it, so none could
    become binary. Checkpoints of ``nn.MultiheadAttention`` can be loaded.

    Args:
        attention: the original, without ``bias_k`` and ``add_zero_attn``; parameters of its output are taken, others copied.
        core: computes scores and sums of values from all heads together; ``None``: real scores and softmax. A binary core
            takes masks of bool for all heads alike, has no dropout and gives no weights.
    """

    # torch's Transformer layers ask for these before they take a path around the forward.
    in_proj_bias, _qkv_same_embed_dim = None, False

    def __init__(self, attention: nn.MultiheadAttention, core: BinaryAttention | None = None):
        super().__init__()
        self.core = core
        self.embed_dim, self.num_heads, self.dropout = attention.embed_dim, attention.num_heads, attention.dropout
        self.batch_first = attention.batch_first
        whole = attention.in_proj_weight
        weights = ([attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight] if whole is None
                   else whole.chunk(3))
        biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device='meta')
            linear.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
            if bias is not None:
                linear.bias = nn.Parameter(bias.detach().clone(), attention.in_proj_bias.requires_grad)
            setattr(self, name, linear)
        out = attention.out_proj
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim, out.bias is not None, device='meta')
        self.out_proj._parameters.update(weight=out.weight, bias=out.bias)
        self.train(attention.training)

    @staticmethod
    def fits(attention: nn.MultiheadAttention) -> bool:
        return attention.bias_k is None and not attention.add_zero_attn

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
                need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
                is_causal: bool = False) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention``: ``[L, N, E]``, or ``[N, L, E]`` with ``batch_first``, or ``[L, E]``; masks are True or
        -inf where no attention is paid. ``is_causal`` is a hint that changes nothing."""
        alone = query.ndim == 2
        if alone:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (getattr(self, name)(x) for name, x in zip(PROJECTIONS, (query, key, value), strict=True))
        if self.core is not None:
            out, weights = self.core(q, k, v, self.keep(key_padding_mask, attn_mask)), None
        else:
            out, weights = self.attend(q, k, v, key_padding_mask, attn_mask, need_weights, average_attn_weights)
        out = self.out_proj(out)
        if alone:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None,
               need_weights: bool, average: bool) -> tuple[Tensor, Tensor | None]:
        """Real attention, ``[N, L, E]``, and its weights where they are asked for."""
        q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
        mask = self.mask(q, key_padding_mask, attn_mask)
        dropout = self.dropout if self.training else 0.0
        if not need_weights:
            return merge_heads(F.scaled_dot_product_attention(q, k, v, mask, dropout)), None
        scores = q @ k.mT * q.shape[-1] ** -0.5
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
        return merge_heads(weights @ v), weights.mean(1) if average else weights

    def keep(self, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Which keys take part, bool ``[N, S]`` or ``[N or 1, L, S]``."""
        for mask in (key_padding_mask, attn_mask):
            if mask is not None and (mask.dtype != torch.bool or (mask is attn_mask and mask.ndim == 3)):
                raise ValueError('binary attention takes masks of bool for all heads alike, but got one of '
                                 f'{mask.dtype} {tuple(mask.shape)}: leave out attention= of the BNNConfig here')
        if attn_mask is None:
            return None if key_padding_mask is None else ~key_padding_mask
        return ~(attn_mask[None] if key_padding_mask is None else attn_mask[None] | key_padding_mask[:, None])

    def mask(self, q: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """The sum of both masks as numbers, broadcastable to ``[N, heads, L, S]``."""
        total = None
        if attn_mask is not None:
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads)) if attn_mask.ndim == 3 else attn_mask
        for mask in (attn_mask, None if key_padding_mask is None else key_padding_mask[:, None, None]):
            if mask is not None:
                if mask.dtype == torch.bool:
                    mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
                total = mask if total is None else total + mask
        return total

    def _load_from_state_dict(self, state_dict, prefix, *args):
        split_tensors_(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f'{self.embed_dim}, heads={self.num_heads}'
