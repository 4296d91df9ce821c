"""The backend `cpu`: the operators on tensors in main memory, wherever they lie there."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backend, OpIO
from ..epilogue import Epilogue
from . import engine, int8_lowering, lowering, map_lowering
from .calls import Call, Program
from .engine import DTYPES, dense
from .lowering import is_image
from .sequence import MOST_FEATURES, SequenceOperators

LOWERINGS = lowering.LOWERINGS | int8_lowering.LOWERINGS | map_lowering.LOWERINGS

OF_IMAGES = 'downsample2d', 'int8_conv2d', 'int8_pooled2d', 'pool2d', 'to_planes'
OF_MAPS = 'concat2d', 'weighted_sum2d'


def wherever(op: str) -> Callable:
    """The operator for tensors wherever they lie: copied where the engine cannot read them, then its call."""
    names = tuple(inspect.signature(getattr(checks, op)).parameters)

    def run(self, *arguments, **call) -> Tensor | tuple[Tensor, Tensor]:
        call = dict(zip(names, arguments, strict=False)) | call
        inputs = {name: readable(op, name, value, call) for name, value in call.items()
                  if value is None or isinstance(value, Tensor | Epilogue)}
        operator = LOWERINGS[op](self, {name: call[name] for name in call.keys() - inputs.keys()}, inputs)
        assert operator is not None, 'for it is readable'
        results = operator(**inputs)
        out = call.get('out')
        return (results[0], out.copy_(results[1])) if out is not None and inputs['out'] is not out else results

    run.__name__ = op
    return run


def readable(op: str, name: str, tensor: Tensor | Epilogue | None, call: dict) -> Tensor | Epilogue | None:
    """The tensor, or a copy that the engine can read; an epilogue of such."""
    if tensor is None:
        return None
    if isinstance(tensor, Epilogue):
        return tensor._replace(**{name: vector if vector is None else dense(vector)
                                  for name, vector in tensor.vectors().items()})
    if op.startswith('pack_') and name == 'threshold':
        channels = call['x'].shape[1 if op == 'pack_activations' else -1]
        return dense(tensor.reshape(-1).float().expand(channels))
    if op == 'stem2d' and name == 'x':  # in any order
        return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor
    if op == 'folded_block2d' and name == 'shortcut':  # the engine repeats whole chunks
        tensor = tensor.repeat(1, call['epilogue'].width // tensor.shape[1], 1, 1)
    images = name in ('shortcut', 'out', 'gate') or (op in OF_MAPS and tensor.dim() == 4) or (name == 'x' and (
        op in OF_IMAGES or (op == 'quantize' and tensor.dim() == 4) or (op == 'pack_activations' and is_image(tensor))))
    return dense(tensor, torch.channels_last if images else torch.contiguous_format)


class Cpu(SequenceOperators, Backend):
    """Runs every operator on tensors in main memory."""

    name = 'cpu'

    def available(self):
        engine.isa()
        return True, ''

    def supports(self, op, **call):
        able, reason = super().supports(op, **call)
        if not able:
            return able, reason
        first = next(call[name] for name in ('x', 'x_words', 'q_words') if name in call)
        if not first.is_cpu:
            return False, f'cpu needs tensors in main memory, got {first.device}'
        if op in ('pack_activations', 'pack_features'):
            for name in ('x', 'threshold'):
                if call[name] is not None and call[name].dtype not in DTYPES:
                    return False, f'cpu packs float32, bfloat16 and float16, got {name} of {call[name].dtype}'
        if op == 'binary_attention' and call['head_dim'] > MOST_FEATURES:
            return False, f'cpu counts scores in bytes: heads have {MOST_FEATURES} signs at most, got {call["head_dim"]}'
        if op == 'stem2d' and any(p > k for p, k in zip(call['geometry'].padding, call['geometry'].kernel, strict=True)):
            return False, f'cpu pads a stem by its kernel at most, got padding {list(call["geometry"].padding)}'
        return True, ''

    def bind(self, op: str, fixed: dict, inputs: dict) -> Callable:
        call = LOWERINGS[op](self, fixed, inputs) if op in LOWERINGS else None
        return call or super().bind(op, fixed, inputs)

    def join(self, calls: Sequence[Callable], ios: Sequence[OpIO], inputs: Sequence, results: Sequence) -> Program | None:
        stay = [call for call in calls if isinstance(call, Call) and call.weights_stay]
        return Program(stay, ios, inputs, results) if len(stay) == len(calls) else None

    pack_activations = wherever('pack_activations')
    pack_features = wherever('pack_features')
    binary_conv2d = wherever('binary_conv2d')
    binary_conv_transpose2d = wherever('binary_conv_transpose2d')
    binary_conv2d_sign = wherever('binary_conv2d_sign')
    binary_block2d = wherever('binary_block2d')
    folded_block2d = wherever('folded_block2d')
    downsample2d = wherever('downsample2d')
    stem2d = wherever('stem2d')
    quantize = wherever('quantize')
    int8_conv2d = wherever('int8_conv2d')
    int8_pooled2d = wherever('int8_pooled2d')
    pool2d = wherever('pool2d')
    to_planes = wherever('to_planes')
    concat2d = wherever('concat2d')
    weighted_sum2d = wherever('weighted_sum2d')
    _linear = wherever('binary_linear')

    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
        if x_words.numel() == 0:  # no image has no pixels
            return torch.empty((*x_words.shape[:-1], len(w_words)), dtype=torch.int32)
        return self._linear(x_words, w_words, features)
