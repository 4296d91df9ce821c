"""The backend `cpu`: arguments of the operators as the engine wants them."""

import math
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from ..dispatch import Backend, Wire
from . import engine
from .bound import BINDINGS
from .calls import Call, Program
from .engine import DTYPES, address, dense, struct
from .sequence import MOST_FEATURES, SequenceOperators

ACTS = {'identity': 0, 'relu': 1, 'hardtanh': 2, 'prelu': 3}  # enum Act of src/engine.hpp
NO_SHORTCUT = -1
PANEL = 16


class Geometry(NamedTuple):
    """A convolution as the engine sees it. Calls of one shape share it: what they need is worked out once."""

    conv: array  # keeps the memory at `address`
    address: int
    shape: tuple[int, int, int, int]  # [N, O, H', W']
    weights: tuple  # what prepared weights depend on beside the weight
    words: dict[tuple[int, int], tuple[int, ...]]  # shape of packed results by output channels and groups


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

    def bind(self, op: str, fixed: dict, inputs: dict) -> Callable | None:
        binding = BINDINGS.get(op)
        return binding and binding(self, fixed, inputs)

    def join(self, calls: Sequence[Call], wires: Sequence[Wire], inputs: Sequence, results: Sequence) -> Program | None:
        come_with_inputs = any(isinstance(weight, str) for call in calls for weight in call.weights)
        return None if come_with_inputs else Program(calls, wires, inputs, results)

    # --- packing ---------------------------------------------------------------------------------------------------------

    def pack_activations(self, x: Tensor, threshold: Tensor | None, groups: int) -> Tensor:
        batch, channels, height, width = x.shape
        plane = 0 if x.is_contiguous(memory_format=torch.channels_last) else height * width
        x = dense(x, torch.contiguous_format if plane else torch.channels_last)
        words = torch.empty(checks.pack_activations(x, threshold, groups), dtype=torch.int32)
        _pack(x, batch * height * width, channels, groups, plane, threshold, words)
        return words

    def pack_features(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        words = torch.empty(checks.pack_features(x, threshold), dtype=torch.int32)
        _pack(dense(x), math.prod(x.shape[:-1]), x.shape[-1], 1, 0, threshold, words)
        return words

    # --- convolutions ----------------------------------------------------------------------------------------------------

    def binary_conv2d(self, x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                      dilation: Sequence[int], groups: int, pad_value: int) -> Tensor:
        geometry = self.geometry(x_words.shape, w_words.shape, channels, stride, padding, dilation, groups, pad_value)
        return _conv2d(geometry, x_words, w_words, _images(geometry.shape, torch.int32))

    def binary_conv_transpose2d(self, x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int],
                                padding: Sequence[int], output_padding: Sequence[int], dilation: Sequence[int],
                                groups: int) -> Tensor:
        geometry = self.geometry(x_words.shape, w_words.shape, channels, stride, padding, dilation, groups, 0, output_padding)
        return _conv2d(geometry, x_words, w_words, _images(geometry.shape, torch.int32))

    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
        *lead, words = x_words.shape
        outputs = w_words.shape[0]
        rows = math.prod(lead)
        if rows == 0:
            return torch.empty((*lead, outputs), dtype=torch.int32)
        geometry = self.geometry((1, 1, rows, words), (outputs, 1, 1, words), features, (1, 1), (0, 0), (1, 1), 1, 0)
        return _conv2d(geometry, x_words, w_words, torch.empty((*lead, outputs), dtype=torch.int32))

    def binary_conv2d_sign(self, x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int],
                           padding: Sequence[int], dilation: Sequence[int], groups: int, pad_value: int, threshold: Tensor,
                           flip: Tensor | None, out_groups: int) -> Tensor:
        geometry = self.geometry(x_words.shape, w_words.shape, channels, stride, padding, dilation, groups, pad_value)
        width = threshold.shape[0]
        threshold = dense(threshold)
        flip = torch.zeros_like(threshold) if flip is None else flip.to(torch.int32)
        words = _words(geometry, width, out_groups)
        signs = struct(width, out_groups, address(threshold), address(flip), address(words))
        _run('bnn_conv2d_sign', geometry, x_words, w_words, signs.buffer_info()[0])
        return words

    def binary_block2d(self, x_words: Tensor, w_words: Tensor, channels: int, stride: Sequence[int], padding: Sequence[int],
                       dilation: Sequence[int], groups: int, pad_value: int, scale: Tensor, bias: Tensor,
                       shortcut: Tensor | None, act: str, gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None,
                       threshold: Tensor | None, out_groups: int, dtype: torch.dtype, pack: bool, keep: bool,
                       out: Tensor | None) -> tuple[Tensor, Tensor]:
        geometry = self.geometry(x_words.shape, w_words.shape, channels, stride, padding, dilation, groups, pad_value)
        width = scale.shape[0]
        vectors = [None if v is None else v if v.is_contiguous() else v.contiguous()
                   for v in (scale, bias, gamma, slope, zeta, threshold)]
        shortcut_dtype = NO_SHORTCUT
        if shortcut is not None:
            shortcut, shortcut_dtype = shortcut.contiguous(memory_format=torch.channels_last), DTYPES[shortcut.dtype]
        words = _words(geometry, width, out_groups) if pack else torch.empty(0, dtype=torch.int32)
        stream = out
        if stream is None:
            batch, _, height, width_out = geometry.shape
            stream = _images((batch, width, height, width_out), dtype) if keep else torch.empty(0, dtype=dtype)
        addresses = [0 if v is None else v.data_ptr() for v in (*vectors, shortcut, stream, words)]
        if any(at & 3 for at in addresses):  # copies start where floats may; so do all tensors that torch makes
            *vectors, threshold, shortcut = [None if v is None else v.clone() for v in (*vectors, shortcut)]
            words, stream = self.binary_block2d(
                x_words, w_words, channels, stride, padding, dilation, groups, pad_value, *vectors[:2], shortcut, act,
                *vectors[2:], threshold, out_groups, dtype, pack, keep, None)
            return words, stream if out is None else out.copy_(stream)
        fused = struct(width, out_groups, ACTS[act], DTYPES[dtype], shortcut_dtype, *addresses, 0)
        _run('bnn_block2d', geometry, x_words, w_words, fused.buffer_info()[0])
        return words, stream

    def downsample2d(self, x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
        batch, channels, height, width = x.shape
        x = dense(x, torch.channels_last)
        isa = engine.isa_number()
        weights = engine.prepared.get(weight, ('downsample', isa), prepare_downsample, isa)
        padded = F.pad(bias, (0, -bias.shape[0] % PANEL))
        y = _images(checks.downsample2d(x, weight, bias, pool), x.dtype)
        downsample = struct(batch, height, width, channels, bias.shape[0], min(pool, max(height, width)), DTYPES[x.dtype],
                            address(x), address(weights), address(padded), address(y))
        engine.call('bnn_downsample', isa, torch.get_num_threads(), downsample.buffer_info()[0])
        return y

    def stem2d(self, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], window: Sequence[int],
               window_stride: Sequence[int], window_padding: Sequence[int], scale: Tensor, bias: Tensor, act: str,
               gamma: Tensor | None, slope: Tensor | None, zeta: Tensor | None, threshold: Tensor | None, out_groups: int,
               dtype: torch.dtype, pack: bool) -> tuple[Tensor, Tensor]:
        geometry = (stride, padding, window, window_stride, window_padding)
        words, stream = checks.stem2d(x, weight, *geometry, scale, bias, act, gamma, slope, zeta, threshold, out_groups, dtype,
                                      pack)
        words, stream = torch.empty(words, dtype=torch.int32), _images(stream, dtype)
        x = x.clone() if x.data_ptr() % x.element_size() else x
        weights = stem_weight(weight, is_interleaved(x))
        vectors = [None if v is None else dense(v) for v in (scale, bias, gamma, slope, zeta, threshold)]
        stem = stem_struct(x, weight.shape, *geometry)
        stem[-2:] = struct(x.data_ptr(), weights.data_ptr())
        fused = struct(scale.shape[0], out_groups, ACTS[act], DTYPES[dtype], NO_SHORTCUT, *map(address, vectors), 0,
                       stream.data_ptr(), words.data_ptr(), 0)
        engine.call('bnn_stem', engine.isa_number(), torch.get_num_threads(), stem.buffer_info()[0], fused.buffer_info()[0])
        return words, stream

    def geometry(self, x_shape, w_shape, channels, stride, padding, dilation, groups, pad_value,
                  output_padding=None) -> Geometry:
        isa, threads = engine.isa_number(), torch.get_num_threads()
        key = (x_shape, w_shape, channels, *stride, *padding, *dilation, groups, pad_value,
               None if output_padding is None else tuple(output_padding), isa, threads)
        geometry = self.geometries.get(key)
        if geometry is None:
            if len(self.geometries) >= 4096:
                self.geometries.clear()
            geometry = self.geometries[key] = _new_geometry(*key[:3], stride, padding, dilation, groups, pad_value,
                                                            output_padding, isa, threads)
        return geometry


def _new_geometry(x_shape, w_shape, channels, stride, padding, dilation, groups, pad_value, output_padding, isa, threads):
    batch, *image, _ = x_shape
    outputs, *kernel, _ = w_shape
    transposed = output_padding is not None
    if transposed:
        sizes = [(i - 1) * s - 2 * p + d * (k - 1) + o + 1 for i, k, s, p, d, o
                 in zip(image, kernel, stride, padding, dilation, output_padding, strict=True)]
    else:
        sizes = [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d
                 in zip(image, kernel, stride, padding, dilation, strict=True)]
    conv = struct(isa, threads, batch, *image, channels, groups, outputs, *kernel, *sizes, *stride, *padding, *dilation,
                  pad_value, transposed)
    return Geometry(conv, conv.buffer_info()[0], (batch, outputs, *sizes), (isa, channels, groups), {})


def _run(function: str, geometry: Geometry, x_words: Tensor, w_words: Tensor, result: int) -> None:
    x_words = dense(x_words)
    weight = engine.prepared.get(w_words, geometry.weights, prepare, geometry)
    engine.call(function, geometry.address, x_words.data_ptr(), weight.data_ptr(), result)


def _conv2d(geometry: Geometry, x_words: Tensor, w_words: Tensor, y: Tensor) -> Tensor:
    _run('bnn_conv2d', geometry, x_words, w_words, y.data_ptr())
    return y


def prepare(weight: Tensor, geometry: Geometry) -> Tensor:
    library, weight = engine.library(), dense(weight)
    made = torch.zeros(library.bnn_prepared_bytes(geometry.address), dtype=torch.uint8)
    library.bnn_prepare(geometry.address, weight.data_ptr(), made.data_ptr())
    return made


def prepare_downsample(weight: Tensor, isa: int) -> Tensor:
    library, weight, (outputs, channels) = engine.library(), dense(weight), weight.shape
    made = torch.zeros(library.bnn_downsample_bytes(isa, channels, outputs), dtype=torch.uint8)
    library.bnn_prepare_downsample(isa, channels, outputs, weight.data_ptr(), made.data_ptr())
    return made


def stem_struct(x: Tensor, weight: Sequence[int], stride: Sequence[int], padding: Sequence[int], window: Sequence[int],
                window_stride: Sequence[int], window_padding: Sequence[int]) -> array:
    """The struct for images like `x` and a weight of this shape; its last two fields, the addresses, are 0."""
    batch, channels, height, width = x.shape
    outputs, _, *kernel = weight
    sizes = [(i + 2 * p - k) // s + 1 for i, p, k, s in zip(x.shape[2:], padding, kernel, stride, strict=True)]
    pooled = [(i + 2 * p - k) // s + 1 for i, p, k, s in zip(sizes, window_padding, window, window_stride, strict=True)]
    steps = [s if size > 1 else 1 for s, size in zip(stride, sizes, strict=True)]  # rows are laid out by their step
    inner, pixel_step = (channels, 1) if is_interleaved(x) else (1, x.stride(3))
    return struct(batch, channels // inner, height, width * inner, *x.stride()[:3], pixel_step, DTYPES[x.dtype], outputs,
                  kernel[0], kernel[1] * inner, steps[0], steps[1] * inner, padding[0], padding[1] * inner, *sizes, *window,
                  *window_stride, *window_padding, *pooled, 0, 0)


def is_interleaved(x: Tensor) -> bool:
    """Whether a row of pixels lies in memory like a longer one of a single channel: that is how a stem then reads it."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def stem_weight(weight: Tensor, interleaved: bool) -> Tensor:
    return engine.prepared.get(weight, ('stem', interleaved), prepare_stem, interleaved)


def prepare_stem(weight: Tensor, interleaved: bool) -> Tensor:
    """[O, C, kH, kW] to [panels, taps, PANEL], taps in the order in which an image is read."""
    weight = weight.detach().movedim(1, -1) if interleaved else weight.detach()
    taps = F.pad(weight.flatten(1), (0, 0, 0, -weight.shape[0] % PANEL))
    return taps.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


def _pack(x: Tensor, pixels: int, channels: int, groups: int, plane: int, threshold: Tensor | None, words: Tensor) -> None:
    if threshold is not None:
        threshold = threshold.reshape(-1).float().expand(channels)
        threshold = dense(threshold)
    packing = struct(pixels, channels, groups, DTYPES[x.dtype], plane, address(x), address(threshold), address(words))
    engine.call('bnn_pack', engine.isa_number(), torch.get_num_threads(), packing.buffer_info()[0])


def _images(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)


def _words(geometry: Geometry, width: int, out_groups: int) -> Tensor:
    shape = geometry.words.get((width, out_groups))
    if shape is None:
        batch, _, *sizes = geometry.shape
        shape = (batch, *sizes, out_groups * checks.words_per_group(width, out_groups))
        geometry.words[width, out_groups] = shape
    return torch.empty(shape, dtype=torch.int32)
