"""Recurrent networks and attention on the engine: arguments as src/sequence.hpp wants them."""

import math
import struct as binary
from array import array

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from .. import recurrence as recurrences
from ..attention import RULES, Planes
from ..derived import Derived
from ..layout import pack_bits
from ..recurrence import Recurrence
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
        call = struct('Normalized', rows=math.prod(x.shape[:-1]), channels=x.shape[-1], dtype=engine.DTYPES[x.dtype],
                      x=address(x), mean=address(mean), std=address(std), threshold=address(threshold), flip=address(flip),
                      words=address(words))
        engine.call('bnn_normalized', engine.isa_number(), torch.get_num_threads(), call.buffer_info()[0])
        return words

    def binary_lstm(self, x: Tensor, w_words: Tensor, recurrence: Recurrence, h_words: Tensor, cell: Tensor,
                    lengths: Tensor | None, pack: bool, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, batch, directions, width = x.shape
        units, outputs = cell.shape[-1], w_words.shape[1] // GATES
        isa = engine.isa_number()
        lanes = engine.library().bnn_sequence_lanes(isa)
        weight = interleaved_weights([w_words], (lanes,))
        vectors = {name: None if vector is None else interleaved_vectors([vector], (rows, outputs, lanes))
                   for name, vector, rows in (('scale', recurrence.scale, GATES), ('scale_x', recurrence.scale_x, GATES),
                                              ('bias', recurrence.bias, GATES), ('threshold', recurrence.threshold, 1))}
        x, h_words, cell = (engine.dense(tensor) for tensor in (x, h_words, cell))
        lengths = None if lengths is None else engine.dense(lengths)
        h = torch.empty((steps, batch, directions, units) if keep else (0,))
        words = torch.empty((steps, batch, directions, h_words.shape[-1]) if pack else (0,), dtype=torch.int32)
        h_last, cell_last = torch.empty_like(h_words), torch.empty_like(cell)
        call = struct(
            'Lstm', threads=torch.get_num_threads(), steps=steps, batch=batch, directions=directions, units=units,
            outputs=outputs, inputs=width // GATES, integer_x=x.dtype == torch.int32,
            gates=recurrences.GATES.index(recurrence.gates), sign_candidate=recurrence.candidate == 'sign',
            cell_readout=recurrence.readout == 'cell', and_feedback=recurrence.feedback == 'and',
            integer_cell=cell.dtype == torch.int8, normalize=recurrence.eps is not None,
            eps=binary.unpack('q', binary.pack('d', recurrence.eps or 0.0))[0], x=address(x), weight=address(weight),
            **{name: address(vector) for name, vector in vectors.items()}, h_first=address(h_words), cell_first=address(cell),
            lengths=address(lengths), h=address(h) if keep else 0, bits=address(words) if pack else 0, h_last=address(h_last),
            cell_last=address(cell_last))
        engine.call('bnn_lstm', isa, call.buffer_info()[0])
        return h, words, h_last, cell_last

    def binary_attention(self, q_words: Tensor, k_words: Tensor, v_words: Tensor, head_dim: int, planes: Planes,
                         mask_words: Tensor | None) -> Tensor:
        batch, queries, heads, _ = q_words.shape
        keys, values = k_words.shape[1], v_words.shape[2]
        tensors = dict(limit=planes.limit, table=planes.table, scale=planes.scale, q=q_words, k=k_words, v=v_words,
                       mask=mask_words)
        tensors = {name: None if tensor is None else engine.dense(tensor) for name, tensor in tensors.items()}
        y = torch.empty((batch, queries, heads, values), dtype=torch.int32 if planes.scale is None else torch.float32)
        rules = array('q', [RULES.index(rule) for rule in planes.rules])
        call = struct(
            'Attention', threads=torch.get_num_threads(), batch=batch, heads=heads, queries=queries, keys=keys,
            features=head_dim, values=values, planes=len(rules), mask_batch=mask_words is not None and mask_words.shape[0] > 1,
            mask_queries=mask_words is not None and mask_words.shape[1] > 1,
            table_heads=planes.table is not None and planes.table.shape[0] > 1, rules=rules.buffer_info()[0],
            **{name: address(tensor) for name, tensor in tensors.items()}, y=address(y))
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
