"""Packed attention: bits of queries, keys and values, integer scores, one integer threshold per query and plane."""

import torch
from torch import Tensor

import bnn_kernels

from ..layers.attention import BinaryAttention, attend, scaled
from .packed import PackedModule, levels_dtype, method_text, register_packed


@register_packed(BinaryAttention)
class PackedAttention(PackedModule):
    """The packed :class:`bnn_plugins.layers.BinaryAttention`; thresholds and steps stay, there is nothing else to keep.

    Neither scores nor probabilities are materialised: see ``bnn_kernels.binary_attention``. With real probabilities
    (``probability='none'``) it computes what the latent module computes.

    Shape: ``[B, N, C]``, ``[B, M, C]``, ``[B, M, C]`` -> ``[B, N, C]``.
    """

    scale = BinaryAttention.scale

    @torch.no_grad()
    def forward(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        if not self.probability.planes:
            return attend(self, query, key, value, keep)
        words = [pack(binarizer.prepare(x), self.heads, binarizer.threshold()) for pack, binarizer, x in (
            (bnn_kernels.pack_heads, self.query, query), (bnn_kernels.pack_heads, self.key, key),
            (bnn_kernels.pack_values, self.value, value))]
        rules = self.probability.rules(self.scale)
        limit = torch.stack([limit.to(query.device).expand(self.heads) for _, limit in rules])
        steps = [torch.as_tensor(step, dtype=torch.float32, device=query.device).reshape(-1).expand(self.heads)
                 for step in self.probability.steps()]
        names, table = [name for name, _ in rules], None
        if 'elastic' in names:
            table = bnn_kernels.attention_table(self.scale, self.features).to(query.device)
        mask = None if keep is None else bnn_kernels.pack_mask(keep)
        out = bnn_kernels.binary_attention(*words, self.features, limit, rule=names, table=table, scale=torch.stack(steps),
                                           mask_words=mask)
        return scaled(self, out.flatten(2).to(levels_dtype(self.value, value)))

    def signature(self) -> str:
        real = ' real values' if self.real_values else ''
        return (f'attention {self.channels} heads {self.heads} method {method_text(self.method)} probability '
                f'{method_text(self.probability_spec)}{real}')

    def extra_repr(self) -> str:
        return self.signature()

