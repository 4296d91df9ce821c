"""Packed attention: bits of queries, keys and values, integer scores, one integer threshold per query and plane."""

import torch
from torch import Tensor

import bnn_kernels
from bnn_kernels.derived import Derived

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
        names, limit, steps, table = self.planes(query.device)
        mask = None if keep is None else bnn_kernels.pack_mask(keep)
        out = bnn_kernels.binary_attention(*words, self.features, limit, rule=names, table=table, scale=steps, mask_words=mask)
        return scaled(self, out.flatten(2).to(levels_dtype(self.value, value)))

    def planes(self, device: torch.device) -> tuple[list[str], Tensor, Tensor, Tensor | None]:
        """Rules, limits, what a bit is worth, and the table of exponentials, on ``device``."""
        tensors = [*self.parameters(), *self.buffers()]
        if not tensors or torch.compiler.is_compiling() or torch._C._is_tracing():
            return planes_of(self, device)
        return known_planes(tensors, (device, self.heads, self.features, repr(self.probability_spec)), self, device)

    def signature(self) -> str:
        real = ' real values' if self.real_values else ''
        return (f'attention {self.channels} heads {self.heads} method {method_text(self.method)} probability '
                f'{method_text(self.probability_spec)}{real}')

    def extra_repr(self) -> str:
        return self.signature()



def planes_of(layer: PackedAttention, device: torch.device) -> tuple[list[str], Tensor, Tensor, Tensor | None]:
    rules = layer.probability.rules(layer.scale)
    limit = torch.stack([limit.to(device).expand(layer.heads) for _, limit in rules])
    steps = torch.stack([torch.as_tensor(step, dtype=torch.float32, device=device).reshape(-1).expand(layer.heads)
                         for step in layer.probability.steps()])
    names = [name for name, _ in rules]
    table = bnn_kernels.attention_table(layer.scale, layer.features).to(device) if 'elastic' in names else None
    return names, limit, steps, table


known_planes = Derived(planes_of)
