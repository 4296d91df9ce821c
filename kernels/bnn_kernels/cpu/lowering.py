"""The call of the engine that runs an operator for inputs of one kind: one function for each, see `Backend.bind`.

They take the backend, the arguments that stay, and those that come with each call. They return None where a tensor does not
lie as the engine reads it: `Cpu` then copies it, at each call.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod
from operator import mul

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from ..derived import Derived
from . import engine
from .calls import BLOCK2D, CONV2D, CONV2D_SIGN, DOWNSAMPLE, PACK, STEM, Call, Made
from .engine import DTYPES, address, dense

ACTS = {'identity': 0, 'relu': 1, 'hardtanh': 2, 'prelu': 3}  # enum Act of src/engine.hpp
NO_SHORTCUT = -1
PANEL = 16
VECTORS = ('scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold')


def image(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Made:
    """In channels-last memory."""
    _, channels, height, width = shape
    return Made(tuple(shape), (height * width * channels, 1, width * channels, channels), dtype)


def rows(shape: Sequence[int], dtype: torch.dtype = torch.int32) -> Made:
    *strides, _ = accumulate([1, *(max(size, 1) for size in reversed(shape))], mul)
    return Made(tuple(shape), tuple(reversed(strides)), dtype)


def is_image(x: Tensor | None) -> bool:
    return x is None or x.is_contiguous(memory_format=torch.channels_last)


def is_vector(v: Tensor | None) -> bool:
    """Whether the engine can read it where it lies."""
    return v is None or (v.is_contiguous() and v.data_ptr() % v.element_size() == 0)


def places(fixed: dict, inputs: dict, names: Sequence[str]) -> tuple[list[int | str] | None, list[Tensor | None]]:
    """Fields for vectors that stay or come, and what keeps their memory: the same values under another name, so that they stay
    although `v.data` be replaced. None: one of them cannot be read where it lies.
    """
    if not all(is_vector((fixed | inputs)[name]) for name in names):
        return None, []
    held = {name: fixed[name].detach() for name in names if fixed.get(name) is not None}
    return [name if inputs.get(name) is not None else address(held.get(name)) for name in names], list(held.values())


def ordinary(cpu, op: str, fixed: dict) -> Callable:
    return lambda **inputs: getattr(cpu, op)(**fixed, **inputs)


def weight(fixed: dict, inputs: dict, name: str) -> Tensor | str:
    return name if name in inputs else fixed[name]


# --- packing -----------------------------------------------------------------------------------------------------------------

def lower_pack_activations(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    x, groups = call['x'], call['groups']
    batch, channels, height, width = x.shape
    if not (is_image(x) or x.is_contiguous()):
        return None
    plane = 0 if is_image(x) else height * width
    numbers = [batch * height * width, channels, groups, DTYPES[x.dtype], plane]
    return packing(cpu, 'pack_activations', fixed, inputs, numbers, rows(checks.pack_activations(**call)))


def lower_pack_features(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    *lead, channels = call['x'].shape
    if not call['x'].is_contiguous():
        return None
    numbers = [prod(lead), channels, 1, DTYPES[call['x'].dtype], 0]
    return packing(cpu, 'pack_features', fixed, inputs, numbers, rows(checks.pack_features(**call)))


def packing(cpu, op: str, fixed: dict, inputs: dict, numbers: list[int], made: Made) -> Call | None:
    channels, threshold = numbers[1], (fixed | inputs)['threshold']
    if threshold is not None and (threshold.dtype, threshold.shape) != (torch.float32, (channels,)):
        return None
    threshold, held = places(fixed, inputs, ['threshold'])
    if threshold is None or 'x' not in inputs:
        return None
    return Call(PACK, ['isa', 'threads', *numbers, 'x', *threshold, 'words'], inputs, dict(words=made), ['words'],
                ordinary(cpu, op, fixed), held)


# --- convolutions ------------------------------------------------------------------------------------------------------------

def convolution(cpu, fixed: dict, inputs: dict, **changes) -> dict | None:
    """What all convolutions derive: 'geometry' and 'weight'. Their arguments may be another operator's, `changes` tell."""
    call = fixed | inputs
    if not call['x_words'].is_contiguous() or 'x_words' not in inputs:
        return None
    names = ('channels', 'stride', 'padding', 'dilation', 'groups', 'pad_value', 'output_padding')
    shapes = dict(x_shape=call['x_words'].shape, w_shape=call['w_words'].shape)
    call = shapes | {name: call[name] for name in names if name in call} | changes

    def derive(words: Tensor, *settings: int) -> tuple:
        geometry = cpu.geometry(**call)
        prepared = prepared_weights([words], geometry.weights, words, geometry)
        return geometry.address, prepared.data_ptr(), (geometry, prepared)

    return dict(derived=('geometry', 'weight'), weights=[weight(fixed, inputs, 'w_words')], derive=derive)


def sums(cpu, op: str, fixed: dict, inputs: dict, made: Callable[..., Made], **changes) -> Call | None:
    own = convolution(cpu, fixed, inputs, **changes)
    fields = ['geometry', 'x_words', 'weight', 'sums']
    return own and Call(CONV2D, fields, inputs, dict(sums=made(getattr(checks, op)(**fixed, **inputs), torch.int32)), ['sums'],
                        ordinary(cpu, op, fixed), **own)


def lower_conv2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    return sums(cpu, 'binary_conv2d', fixed, inputs, image)


def lower_conv_transpose2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    return sums(cpu, 'binary_conv_transpose2d', fixed, inputs, image, pad_value=0)


def lower_linear(cpu, fixed: dict, inputs: dict) -> Call | None:
    """A 1x1 convolution of an image of one row."""
    call = fixed | inputs
    *lead, words = call['x_words'].shape
    if 0 in lead:
        return None
    shapes = dict(x_shape=(1, 1, prod(lead), words), w_shape=(len(call['w_words']), 1, 1, words))
    return sums(cpu, 'binary_linear', fixed, inputs, rows, **shapes, channels=call['features'], stride=(1, 1), padding=(0, 0),
                dilation=(1, 1), groups=1, pad_value=0)


def lower_conv2d_sign(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    threshold, held = places(fixed, inputs, ['threshold'])
    own = convolution(cpu, fixed, inputs)
    if threshold is None or own is None:
        return None
    width, flip = call['threshold'].shape[0], [] if call['flip'] is None else [weight(fixed, inputs, 'flip')]

    def derive(words: Tensor, *flip_and_settings: Tensor | int) -> tuple:
        *flip, isa, threads = flip_and_settings
        flips = flip[0].to(torch.int32).contiguous() if flip else torch.zeros(width, dtype=torch.int32)
        *addresses, alive = own['derive'](words, isa, threads)
        return *addresses, flips.data_ptr(), (alive, flips)

    fields = ['geometry', 'x_words', 'weight', width, call['out_groups'], *threshold, 'flips', 'words']
    return Call(CONV2D_SIGN, fields, inputs, dict(words=rows(checks.binary_conv2d_sign(**call))), ['words'],
                ordinary(cpu, 'binary_conv2d_sign', fixed), held, (*own['derived'], 'flips'),
                [*own['weights'], *flip], derive)


def lower_block2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    vectors, held = places(fixed, inputs, VECTORS)
    own = convolution(cpu, fixed, inputs)
    shortcut, out, dtype = call['shortcut'], call['out'], call['dtype']
    if vectors is None or own is None or not (is_image(shortcut) and is_image(out)) or 'shortcut' in fixed or 'out' in fixed:
        return None
    words, stream = checks.binary_block2d(**call)
    # What is not wanted has the shape [0], and null for an address.
    made = dict(words=rows(words)) | ({} if out is not None else dict(stream=(image if call['keep'] else rows)(stream, dtype)))
    taker = 'stream' if out is None else 'out'
    fields = ['geometry', 'x_words', 'weight', call['scale'].shape[0], call['out_groups'], ACTS[call['act']], DTYPES[dtype],
              NO_SHORTCUT if shortcut is None else DTYPES[shortcut.dtype], *vectors, 0 if shortcut is None else 'shortcut',
              taker, 'words', 0]
    return Call(BLOCK2D, fields, inputs, made, ['words', taker], ordinary(cpu, 'binary_block2d', fixed), held, **own)


def prepare(words: Tensor, geometry) -> Tensor:
    library, words = engine.library(), dense(words)
    made = torch.zeros(library.bnn_prepared_bytes(geometry.address), dtype=torch.uint8)
    library.bnn_prepare(geometry.address, words.data_ptr(), made.data_ptr())
    return made


prepared_weights = Derived(prepare)


# --- the real-valued parts of a network --------------------------------------------------------------------------------------

def lower_downsample2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    x, pool = call['x'], call['pool']
    if 'x' not in inputs or not is_image(x):
        return None

    def derive(matrix: Tensor, bias: Tensor, isa: int, threads: int) -> tuple:
        padded = F.pad(bias.detach(), (0, -bias.shape[0] % PANEL))
        made = prepared_downsamples([matrix], (isa,))
        return made.data_ptr(), padded.data_ptr(), (made, padded)

    shape = checks.downsample2d(**call)
    batch, channels, height, width = x.shape
    fields = ['isa', 'threads', batch, height, width, channels, shape[1], min(pool, max(height, width)), DTYPES[x.dtype], 'x',
              'matrix', 'padded', 'stream']
    return Call(DOWNSAMPLE, fields, inputs, dict(stream=image(shape, x.dtype)), ['stream'],
                ordinary(cpu, 'downsample2d', fixed), None, ('matrix', 'padded'),
                [weight(fixed, inputs, 'weight'), weight(fixed, inputs, 'bias')], derive)


def prepare_downsample(matrix: Tensor, isa: int) -> Tensor:
    library, matrix, (outputs, channels) = engine.library(), dense(matrix), matrix.shape
    made = torch.zeros(library.bnn_downsample_bytes(isa, channels, outputs), dtype=torch.uint8)
    library.bnn_prepare_downsample(isa, channels, outputs, matrix.data_ptr(), made.data_ptr())
    return made


prepared_downsamples = Derived(prepare_downsample)


def lower_stem2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    x, dtype = call['x'], call['dtype']
    vectors, held = places(fixed, inputs, VECTORS)
    if vectors is None or 'x' not in inputs:
        return None
    interleaved = is_interleaved(x)

    def derive(kernels: Tensor, *settings: int) -> tuple:
        made = prepared_stems([kernels], (interleaved,))
        return made.data_ptr(), made

    words, stream = checks.stem2d(**call)
    fields = ['isa', 'threads', *stem_numbers(x, call), 'x', 'kernels', call['scale'].shape[0], call['out_groups'],
              ACTS[call['act']], DTYPES[dtype], NO_SHORTCUT, *vectors, 0, 'stream', 'words', 0]
    return Call(STEM, fields, inputs, dict(words=rows(words), stream=image(stream, dtype)), ['words', 'stream'],
                ordinary(cpu, 'stem2d', fixed), held, ('kernels',), [weight(fixed, inputs, 'weight')], derive)


def stem_numbers(x: Tensor, call: dict) -> list[int]:
    """The fields of the struct before its addresses."""
    batch, channels, height, width = x.shape
    stride, padding, window, window_stride, window_padding = (
        call[name] for name in ('stride', 'padding', 'window', 'window_stride', 'window_padding'))
    outputs, _, *kernel = call['weight'].shape
    sizes = checks.output_sizes(x.shape[2:], kernel, stride, padding)
    pooled = checks.output_sizes(sizes, window, window_stride, window_padding)
    steps = [s if size > 1 else 1 for s, size in zip(stride, sizes, strict=True)]  # rows are laid out by their step
    inner, pixel_step = (channels, 1) if is_interleaved(x) else (1, x.stride(3))
    return [batch, channels // inner, height, width * inner, *x.stride()[:3], pixel_step, DTYPES[x.dtype], outputs,
            kernel[0], kernel[1] * inner, steps[0], steps[1] * inner, padding[0], padding[1] * inner, *sizes, *window,
            *window_stride, *window_padding, *pooled]


def is_interleaved(x: Tensor) -> bool:
    """Whether a row of pixels lies in memory like a longer one of a single channel: that is how a stem then reads it."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def prepare_stem(kernels: Tensor, interleaved: bool) -> Tensor:
    """[O, C, kH, kW] to [panels, taps, PANEL], taps in the order in which an image is read."""
    kernels = kernels.detach().movedim(1, -1) if interleaved else kernels.detach()
    taps = F.pad(kernels.flatten(1), (0, 0, 0, -kernels.shape[0] % PANEL))
    return taps.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


prepared_stems = Derived(prepare_stem)


LOWERINGS: dict[str, Callable[..., Call | None]] = {
    'pack_activations': lower_pack_activations, 'pack_features': lower_pack_features, 'binary_conv2d': lower_conv2d,
    'binary_conv_transpose2d': lower_conv_transpose2d, 'binary_linear': lower_linear, 'binary_conv2d_sign': lower_conv2d_sign,
    'binary_block2d': lower_block2d, 'downsample2d': lower_downsample2d, 'stem2d': lower_stem2d}
