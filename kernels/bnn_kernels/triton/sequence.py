"""Recurrent networks and attention on the Triton backends: from a call to launches of sequence_kernels.py."""

import torch
import triton
from torch import Tensor

from ..attention import RULES, Planes
from ..layout import words_per_group
from ..recurrence import Recurrence
from . import launch, sequence_kernels
from .tables import tile


class SequenceOperators:
    """What the Triton backends add to their convolutions; each is one launch, an LSTM one per step."""

    def pack_normalized(self, x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
        *lead, channels = x.shape
        words = torch.empty((*lead, words_per_group(channels)), dtype=torch.int32, device=x.device)
        rows = mean.numel()
        launch.limit(rows)
        if rows:
            tiles = tile('normalized', launch.architecture(x.device), channels)
            programs = -(-rows // tiles['BLOCK_M']) * -(-words.shape[-1] * 32 // tiles['BLOCK_N'])
            with launch.on(x.device):
                sequence_kernels.pack_normalized[(programs,)](
                    launch.bits(x.detach().contiguous()), mean.contiguous(), std.contiguous(), threshold.contiguous(),
                    None if flip is None else flip.contiguous().view(torch.uint8), words, rows, CHANNELS=channels,
                    enable_fp_fusion=False, **tiles)
        return words

    def binary_lstm(self, x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor,
                    lengths: Tensor | None, pack: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, scale_x, bias, threshold, _, gates, candidate, readout, feedback = recurrence
        steps, batch, directions, width = x.shape
        units, words = cell.shape[-1], h_words.shape[-1]
        launch.limit(steps * batch * directions)
        h = torch.empty((steps, batch, directions, units) if keep else (0,), device=x.device)
        bits = h_words.new_empty((steps, batch, directions, words) if pack else (0,))
        before = h_words.clone(memory_format=torch.contiguous_format)
        after = torch.empty_like(before)
        state = cell.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        tensors = [None if t is None else t.detach().contiguous()
                   for t in (x, w_words, scale, scale_x, bias, threshold, lengths)]
        tiles = tile('lstm', launch.architecture(x.device), units)
        programs = directions * -(-batch // tiles['BLOCK_M']) * -(-units // tiles['BLOCK_N'])
        with launch.on(x.device):
            for step in range(steps if batch else 0):
                sequence_kernels.lstm_step[(programs,)](
                    *tensors, before, after, state, h if keep else None, bits if pack else None, step, steps, batch,
                    directions, UNITS=units, OUTPUTS=w_words.shape[1] // 4, INPUTS=width // 4, GATES=gates,
                    SIGN_CANDIDATE=candidate == 'sign', CELL_READOUT=readout == 'cell', AND_FEEDBACK=feedback == 'and',
                    INTEGER_CELL=cell.dtype == torch.int8, enable_fp_fusion=False, **tiles)
                before, after = after, before
        return h, bits, before, state.to(cell.dtype)

    def binary_attention(self, q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                         mask_words: Tensor | None) -> Tensor:
        rules, limit, table, scale = planes
        batch, queries, heads, _ = q_words.shape
        keys, values = k_words.shape[1], v_words.shape[2]
        y = torch.empty((batch, queries, heads, values), device=q_words.device,
                        dtype=torch.int32 if scale is None else torch.float32)
        launch.limit(batch * heads * max(queries, keys) * -(-values // 16))
        if y.numel() == 0:
            return y
        tensors = [None if t is None else t.detach().contiguous()
                   for t in (q_words, k_words, v_words, mask_words, limit, table, scale)]
        tiles = dict(tile('attention', launch.architecture(q_words.device), values))
        block = tiles.pop('BLOCK_N')
        programs = batch * heads * -(-queries // tiles['BLOCK_M']) * -(-values // block)
        mask_batch = mask_query = 0
        if mask_words is not None:
            mask_query = int(mask_words.shape[1] > 1)
            mask_batch = mask_words.shape[1] if mask_words.shape[0] > 1 else 0
        with launch.on(q_words.device):
            sequence_kernels.attend[(programs,)](
                *tensors, y, queries, keys, heads, mask_batch, mask_query, int(table is not None and table.shape[0] > 1),
                FEATURES=head_dim, VALUES=values, PLANES=len(rules), BLOCK_V=block,
                RULES=sum(RULES.index(rule) << 2 * plane for plane, rule in enumerate(rules)),
                ENTRIES=triton.next_power_of_2(head_dim + 1), enable_fp_fusion=False, **tiles)
        return y
