"""The backend `cpu`: the operators on tensors in main memory, wherever they lie there."""

import inspect
from array import array
from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..dispatch import Backend, OpIO
from . import engine
from .calls import Call, Program
from .engine import DTYPES, ISAS, dense, struct
from .lowering import LOWERINGS, is_image
from .sequence import MOST_FEATURES, SequenceOperators

AVX512, AMX = ISAS.index('avx512'), ISAS.index('amx')
FEW_PIXELS = 8  # of 16 in a tile of AMX: below, expanding the weights takes longer than counting their signs


class Geometry(NamedTuple):
    """A convolution as the engine sees it. Calls of one shape share it: what they need is worked out once."""

    conv: array  # keeps the memory at `address`
    address: int
    weights: tuple  # what prepared weights depend on beside the weight


def wherever(op: str) -> Callable:
    """The operator for tensors wherever they lie: copied where the engine cannot read them, then its call."""
    names = tuple(inspect.signature(getattr(checks, op)).parameters)

    def run(self, *arguments, **call) -> Tensor | tuple[Tensor, Tensor]:
        call = dict(zip(names, arguments, strict=False)) | call
        inputs = {name: readable(op, name, value, call) for name, value in call.items()
                  if value is None or isinstance(value, Tensor)}
        results = LOWERINGS[op](self, {name: call[name] for name in call.keys() - inputs.keys()}, inputs)(**inputs)
        out = call.get('out')
        return (results[0], out.copy_(results[1])) if out is not None and inputs['out'] is not out else results

    run.__name__ = op
    return run


def readable(op: str, name: str, tensor: Tensor | None, call: dict) -> Tensor | None:
    """The tensor, or a copy that the engine can read."""
    if tensor is None:
        return None
    if op.startswith('pack_') and name == 'threshold':
        channels = call['x'].shape[1 if op == 'pack_activations' else -1]
        return dense(tensor.reshape(-1).float().expand(channels))
    if op == 'stem2d' and name == 'x':  # in any order
        return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor
    images = name in ('shortcut', 'out') or (name == 'x' and (
        op == 'downsample2d' or (op == 'pack_activations' and is_image(tensor))))
    return dense(tensor, torch.channels_last if images else torch.contiguous_format)


class Cpu(SequenceOperators, Backend):
    """Runs every operator on tensors in main memory."""

    name = 'cpu'

    def __init__(self):
        self.geometries: dict[tuple, Geometry] = {}

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
        if op == 'stem2d' and any(p > k for p, k in zip(call['padding'], call['weight'].shape[2:], strict=True)):
            return False, f'cpu pads a stem by its kernel at most, got padding {list(call["padding"])}'
        return True, ''

    def bind(self, op: str, fixed: dict, inputs: dict) -> Callable:
        call = LOWERINGS[op](self, fixed, inputs) if op in LOWERINGS else None
        return call or super().bind(op, fixed, inputs)

    def join(self, calls: Sequence[Callable], ios: Sequence[OpIO], inputs: Sequence, results: Sequence) -> Program | None:
        stay = all(isinstance(call, Call) and call.weights_stay for call in calls)
        return Program(calls, ios, inputs, results) if stay else None

    pack_activations = wherever('pack_activations')
    pack_features = wherever('pack_features')
    binary_conv2d = wherever('binary_conv2d')
    binary_conv_transpose2d = wherever('binary_conv_transpose2d')
    binary_conv2d_sign = wherever('binary_conv2d_sign')
    binary_block2d = wherever('binary_block2d')
    downsample2d = wherever('downsample2d')
    stem2d = wherever('stem2d')
    _linear = wherever('binary_linear')

    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
        if x_words.numel() == 0:  # no image has no pixels
            return torch.empty((*x_words.shape[:-1], len(w_words)), dtype=torch.int32)
        return self._linear(x_words, w_words, features)

    def geometry(self, x_shape: Sequence[int], w_shape: Sequence[int], channels: int, stride: Sequence[int],
                 padding: Sequence[int], dilation: Sequence[int], groups: int, pad_value: int,
                 output_padding: Sequence[int] | None = None) -> Geometry:
        """Of the instruction set and the threads that are in use. With an output padding it is a transposed convolution."""
        settings = engine.isa_number(), torch.get_num_threads()
        key = (*settings, *x_shape, *w_shape, channels, *stride, *padding, *dilation, groups, pad_value,
               *(output_padding or ()))
        geometry = self.geometries.get(key)
        if geometry is None:
            if len(self.geometries) >= 4096:
                self.geometries.clear()
            geometry = self.geometries[key] = _new_geometry(x_shape, w_shape, channels, stride, padding, dilation, groups,
                                                            pad_value, output_padding, *settings)
        return geometry


def _new_geometry(x_shape, w_shape, channels, stride, padding, dilation, groups, pad_value, output_padding, isa, threads):
    batch, *size, _ = x_shape
    outputs, *kernel, _ = w_shape
    transposed = output_padding is not None
    if transposed:
        sizes = [(i - 1) * s - 2 * p + d * (k - 1) + o + 1 for i, k, s, p, d, o
                 in zip(size, kernel, stride, padding, dilation, output_padding, strict=True)]
    else:
        sizes = checks.output_sizes(size, kernel, stride, padding, dilation)
    if isa == AMX and batch * prod(sizes) < FEW_PIXELS:
        isa = AVX512
    conv = struct(isa, threads, batch, *size, channels, groups, outputs, *kernel, *sizes, *stride, *padding, *dilation,
                  pad_value, transposed)
    # AMX orders the taps of a transposed convolution by the outputs that they reach.
    order = (*stride, *padding, *dilation) if transposed else ()
    return Geometry(conv, conv.buffer_info()[0], (isa, channels, groups, *order))
