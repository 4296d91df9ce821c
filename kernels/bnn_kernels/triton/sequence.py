"""Recurrent networks and attention on the Triton backends: from a call to launches of sequence_kernels.py."""

from collections.abc import Callable

import torch
import triton
from torch import Tensor

from ..attention import RULES, Planes
from ..layout import words_per_group
from ..recurrence import Recurrence
from . import sequence_kernels
from .device import architecture, on
from .launch import Launch, aligned, limit, operator, split
from .tables import tile


class SequenceOperators:
    """What the Triton backends add to their convolutions; each is one launch, an LSTM of many units one per step."""

    @operator
    def pack_normalized(self, x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor,
                        flip: Tensor | None) -> Callable[..., Tensor]:
        *lead, channels = x.shape
        rows, device = mean.numel(), x.device
        limit(rows)
        shape = *lead, words_per_group(channels)
        tiles, options = split(tile('normalized', architecture(device), channels))
        programs = -(-rows // tiles['BLOCK_M']) * -(-shape[-1] * 32 // tiles['BLOCK_N'])
        launch = Launch(sequence_kernels.pack_normalized, programs, dict(rows=rows, CHANNELS=channels, **tiles), **options,
                        enable_fp_fusion=False)

        def call(x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
            words = torch.empty(shape, dtype=torch.int32, device=device)
            if programs:
                with on(device):
                    launch(aligned(x), aligned(mean), aligned(std), aligned(threshold),
                           None if flip is None else aligned(flip).view(torch.uint8), words)
            return words
        return call

    @operator
    def binary_lstm(self, x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor,
                    lengths: Tensor | None, pack: bool, keep: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
        steps, batch, directions, width = x.shape
        units, words, device = cell.shape[-1], h_words.shape[-1], x.device
        limit(steps * batch * directions)
        tiles, options = split(tile('lstm', architecture(device), units))
        columns = -(-units // tiles['BLOCK_N'])
        count = max(steps, 1) if columns == 1 else 1  # of a launch
        programs = directions * -(-batch // tiles['BLOCK_M']) * columns
        numbers = dict(
            count=count, steps=steps, batch=batch, directions=directions, UNITS=units, OUTPUTS=w_words.shape[1] // 4,
            INPUTS=width // 4, GATES=recurrence.gates, SIGN_CANDIDATE=recurrence.candidate == 'sign',
            CELL_READOUT=recurrence.readout == 'cell', AND_FEEDBACK=recurrence.feedback == 'and',
            INTEGER_CELL=cell.dtype == torch.int8)
        launch = Launch(sequence_kernels.lstm, programs, numbers | tiles, **options, enable_fp_fusion=False)

        def call(x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor, lengths: Tensor | None,
                 pack: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            h = torch.empty((steps, batch, directions, units) if keep else (0,), device=device)
            bits = h_words.new_empty((steps, batch, directions, words) if pack else (0,))
            before = h_words.clone(memory_format=torch.contiguous_format)
            after = torch.empty_like(before)
            state = cell.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            scale, scale_x, bias, threshold = recurrence[:4]
            tensors = [aligned(t) for t in (x, w_words, scale, scale_x, bias, threshold, lengths)]
            with on(device):
                for step in range(0, steps if batch else 0, count):
                    launch(*tensors, before, after, state, h if keep else None, bits if pack else None, step)
                    if count % 2:
                        before, after = after, before
            return h, bits, before, state.to(cell.dtype)
        return call

    @operator
    def binary_attention(self, q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                         mask_words: Tensor | None) -> Callable[..., Tensor]:
        rules, _, table, scale = planes
        batch, queries, heads, _ = q_words.shape
        keys, values, device = k_words.shape[1], v_words.shape[2], q_words.device
        limit(batch * heads * max(queries, keys) * -(-values // 16))
        shape, dtype = (batch, queries, heads, values), torch.int32 if scale is None else torch.float32
        tiles, options = split(tile('attention', architecture(device), values))
        block = tiles.pop('BLOCK_N')
        programs = batch * heads * -(-queries // tiles['BLOCK_M']) * -(-values // block)
        mask_batch = mask_query = 0
        if mask_words is not None:
            mask_query = int(mask_words.shape[1] > 1)
            mask_batch = mask_words.shape[1] if mask_words.shape[0] > 1 else 0
        numbers = dict(
            queries=queries, keys=keys, heads=heads, mask_batch=mask_batch, mask_query=mask_query,
            table_heads=int(table is not None and table.shape[0] > 1), FEATURES=head_dim, VALUES=values, PLANES=len(rules),
            BLOCK_V=block, RULES=sum(RULES.index(rule) << 2 * plane for plane, rule in enumerate(rules)),
            ENTRIES=triton.next_power_of_2(head_dim + 1))
        launch = Launch(sequence_kernels.attend, programs, numbers | tiles, **options, enable_fp_fusion=False)

        def call(q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                 mask_words: Tensor | None) -> Tensor:
            y = torch.empty(shape, dtype=dtype, device=device)
            if y.numel():
                tensors = (q_words, k_words, v_words, mask_words, planes.limit, planes.table, planes.scale)
                with on(device):
                    launch(*map(aligned, tensors), y)
            return y
        return call
