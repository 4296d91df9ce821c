"""Recurrent networks and attention on the engine: arguments as src/sequence.hpp wants them."""

import math
import struct as binary
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks, recurrence
from ..attention import RULES
from ..derived import Derived
from ..layout import pack_bits
from . import engine
from .engine import address, struct

GATES = 4
MOST_FEATURES = 255  # of a head, as in src/sequence.hpp


class SequenceOperators:
    """What the backend `cpu` adds to its convolutions."""

    def pack_normalized(self, x: Tensor, mean: Tensor, std: Tensor, threshold: Tensor, flip: Tensor | None) -> Tensor:
        words = torch.empty(checks.pack_normalized(x, mean, std, threshold, flip), dtype=torch.int32)
        x, mean, std, threshold = (engine.dense(tensor) for tensor in (x, mean, std, threshold))
        flip = torch.zeros(words.shape[-1], dtype=torch.int32) if flip is None else pack_bits(flip)
        call = struct(math.prod(x.shape[:-1]), x.shape[-1], engine.DTYPES[x.dtype], address(x), address(mean), address(std),
                      address(threshold), address(flip), address(words))
        engine.call('bnn_normalized', engine.isa_number(), torch.get_num_threads(), call.buffer_info()[0])
        return words

    def binary_lstm(self, x: Tensor, w_words: Tensor, scale: Tensor, scale_x: Tensor | None, bias: Tensor | None,
                    threshold: Tensor | None, eps: float | None, gates: str, candidate: str, readout: str, feedback: str,
                    h_words: Tensor, cell: Tensor, lengths: Tensor | None, pack: bool,
                    keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, batch, directions, width = x.shape
        units, outputs = cell.shape[-1], w_words.shape[1] // GATES
        isa = engine.isa_number()
        lanes = engine.library().bnn_sequence_lanes(isa)
        weight = interleaved_weights([w_words], (lanes,))
        vectors = [None if vector is None else interleaved_vectors([vector], (rows, outputs, lanes))
                   for vector, rows in ((scale, GATES), (scale_x, GATES), (bias, GATES), (threshold, 1))]
        x, h_words, cell = (engine.dense(tensor) for tensor in (x, h_words, cell))
        lengths = None if lengths is None else engine.dense(lengths)
        h = torch.empty((steps, batch, directions, units) if keep else (0,))
        words = torch.empty((steps, batch, directions, h_words.shape[-1]) if pack else (0,), dtype=torch.int32)
        h_last, cell_last = torch.empty_like(h_words), torch.empty_like(cell)
        call = struct(
            torch.get_num_threads(), steps, batch, directions, units, outputs, width // GATES, x.dtype == torch.int32,
            recurrence.GATES.index(gates), candidate == 'sign', readout == 'cell', feedback == 'and', cell.dtype == torch.int8,
            eps is not None, binary.unpack('q', binary.pack('d', eps or 0.0))[0], address(x), address(weight),
            *(address(vector) for vector in vectors), address(h_words), address(cell), address(lengths),
            address(h) if keep else 0, address(words) if pack else 0, address(h_last), address(cell_last))
        engine.call('bnn_lstm', isa, call.buffer_info()[0])
        return h, words, h_last, cell_last

    def binary_attention(self, q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, rules: Sequence[str],
                         limit: Tensor, table: Tensor | None, scale: Tensor | None, mask_words: Tensor | None) -> Tensor:
        batch, queries, heads, _ = q_words.shape
        keys, values = k_words.shape[1], v_words.shape[2]
        tensors = [None if t is None else engine.dense(t)
                   for t in (limit, table, scale, q_words, k_words, v_words, mask_words)]
        y = torch.empty((batch, queries, heads, values), dtype=torch.int32 if scale is None else torch.float32)
        numbers = struct(*(RULES.index(rule) for rule in rules))
        call = struct(torch.get_num_threads(), batch, heads, queries, keys, head_dim, values, len(rules),
                      mask_words is not None and mask_words.shape[0] > 1, mask_words is not None and mask_words.shape[1] > 1,
                      table is not None and table.shape[0] > 1, numbers.buffer_info()[0],
                      *(address(tensor) for tensor in tensors), address(y))
        engine.call('bnn_attention', engine.isa_number(), call.buffer_info()[0])
        return y


def _interleave_weight(weight: Tensor, lanes: int) -> Tensor:
    """[D, 4 * O, words] to [D, chunks, words, 4, lanes], zeros behind the last output."""
    directions, rows, words = weight.shape
    weight = weight.contiguous()
    filled = F.pad(weight.view(directions, GATES, rows // GATES, words), (0, 0, 0, -(rows // GATES) % lanes))
    return filled.view(directions, GATES, -1, lanes, words).permute(0, 2, 4, 1, 3).contiguous()


def _interleave_vector(vector: Tensor, rows: int, outputs: int, lanes: int) -> Tensor:
    """[D, rows * P] to [D, replicas, chunks, rows, lanes], zeros behind the last output."""
    filled = F.pad(vector.reshape(len(vector), rows, -1, outputs), (0, -outputs % lanes))
    return filled.unflatten(-1, (-1, lanes)).permute(0, 2, 3, 1, 4).contiguous()


interleaved_weights, interleaved_vectors = Derived(_interleave_weight), Derived(_interleave_vector)
