"""The call of the engine that runs an operator for inputs of one kind: one function for each, see `Backend.bind`.

They take the backend, the arguments that stay, and those that come with each call. They return None where a tensor does not
lie as the engine reads it: `Cpu` then copies it, at each call.
"""

from array import array
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from ..derived import Derived
from ..epilogue import Epilogue
from ..geometry import Conv2dGeometry, Pair, Stem2dGeometry, linear_geometry
from . import engine
from .calls import BLOCK2D, CONV2D, CONV2D_SIGN, DOWNSAMPLE, PACK, STEM, Call, Made
from .engine import DTYPES, ISAS, STREAMS, address, dense, fields, struct

ACTS = {'identity': 0, 'relu': 1, 'hardtanh': 2, 'prelu': 3, 'silu': 4}  # enum Act of src/engine.hpp
NO_SHORTCUT = -1
PANEL = 16
CHUNK = 64  # channels, of src/engine.hpp
AVX512, AMX = ISAS.index('avx512'), ISAS.index('amx')
VECTORS = 'scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold'
FEW_PIXELS = 8  # of 16 in a tile of AMX: below, expanding the weights takes longer than counting their signs


def image(shape: Sequence[int], dtype: torch.dtype) -> Made:
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


def vectors(fixed: dict, inputs: dict, *names: str) -> tuple[dict[str, int | str] | None, list[Tensor]]:
    """Fields for vectors that stay or come, and what keeps their memory: the same values under another name, so that they stay
    although `v.data` be replaced. None: one of them cannot be read where it lies.
    """
    if not all(is_vector((fixed | inputs)[name]) for name in names):
        return None, []
    held = {name: fixed[name].detach() for name in names if fixed.get(name) is not None}
    return {name: name if inputs.get(name) is not None else address(held.get(name)) for name in names}, list(held.values())


def spread(arguments: dict) -> dict:
    """With the vectors of an epilogue by their names, in its place."""
    epilogue = arguments.get('epilogue')
    if epilogue is None:
        return arguments
    return {name: value for name, value in arguments.items() if name != 'epilogue'} | epilogue.vectors()


def lowered(cpu, op: str, operation: int, record: Sequence[int | str], fixed: dict, inputs: dict, made: dict[str, Made],
            results: Sequence[str], **derived) -> Callable:
    """The call, or where an epilogue comes with each call, what takes it apart."""
    ordinary = partial(getattr(cpu, op), **fixed)
    if 'epilogue' not in inputs:
        return Call(operation, record, inputs, made, results, ordinary, **derived)
    numbers = {name: value for name, value in inputs['epilogue']._asdict().items() if name not in VECTORS}

    def gather(**inputs):
        return ordinary(epilogue=Epilogue(**numbers, **{name: inputs.pop(name) for name in VECTORS}), **inputs)

    call = Call(operation, record, spread(inputs), made, results, gather, **derived)
    return lambda epilogue, **inputs: call(**inputs, **epilogue.vectors())


def weight(fixed: dict, inputs: dict, name: str) -> Tensor | str:
    return name if name in inputs else fixed[name]


# --- packing -----------------------------------------------------------------------------------------------------------------

def lower_pack_activations(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x = call['x']
    if not (is_image(x) or x.is_contiguous()):
        return None
    plane = 0 if is_image(x) else prod(x.shape[2:])
    return packing(cpu, 'pack_activations', fixed, inputs, x.shape[1], x.numel() // x.shape[1], call['groups'], plane)


def lower_pack_features(cpu, fixed: dict, inputs: dict) -> Callable | None:
    x = (fixed | inputs)['x']
    *lead, channels = x.shape
    return packing(cpu, 'pack_features', fixed, inputs, channels, prod(lead), 1, 0) if x.is_contiguous() else None


def packing(cpu, op: str, fixed: dict, inputs: dict, channels: int, pixels: int, groups: int, plane: int) -> Callable | None:
    call = fixed | inputs
    threshold = call['threshold']
    if threshold is not None and (threshold.dtype, threshold.shape) != (torch.float32, (channels,)):
        return None
    places, held = vectors(fixed, inputs, 'threshold')
    if places is None or 'x' not in inputs:
        return None
    record = fields('Packing', pixels=pixels, channels=channels, groups=groups, dtype=DTYPES[call['x'].dtype], plane=plane,
                    x='x', words='words', **places)
    made = dict(words=rows(getattr(checks, op)(**call)))
    return lowered(cpu, op, PACK, ['isa', 'threads', *record], fixed, inputs, made, ['words'], holds=held)


# --- convolutions ------------------------------------------------------------------------------------------------------------

@lru_cache(4096)
def conv_struct(geometry: Conv2dGeometry, batch: int, image: Pair, isa: int, threads: int,
                kind: torch.dtype | None = None) -> array:
    """A convolution as the engine sees it, of signs or of the values of a dtype; calls of one shape share it."""
    size = geometry.size(image)
    if isa == AMX and batch * prod(size) < FEW_PIXELS:
        isa = AVX512
    pairs = dict(kernel=geometry.kernel, out=size, stride=geometry.stride, pad=geometry.padding, dilation=geometry.dilation)
    sides = {f'{name}_{axis}': side for name, both in pairs.items() for axis, side in zip('hw', both, strict=True)}
    return struct('Conv', isa=isa, threads=threads, batch=batch, height=image[0], width=image[1], channels=geometry.channels,
                  groups=geometry.groups, outputs=geometry.outputs, pad_value=geometry.pad_value,
                  transposed=geometry.transposed, bytes=kind is not None, is_signed=kind == torch.int8, **sides)


def convolution(geometry: Conv2dGeometry, batch: int, image: Sequence[int], fixed: dict, inputs: dict) -> dict | None:
    """What all convolutions derive: 'geometry' and 'weight'."""
    if 'x_words' not in inputs or not inputs['x_words'].is_contiguous():
        return None

    def derive(words: Tensor, isa: int, threads: int) -> tuple:
        conv = conv_struct(geometry, batch, tuple(image), isa, threads)
        # AMX orders the taps of a transposed convolution by the outputs that they reach.
        order = (geometry.stride, geometry.padding, geometry.dilation) if geometry.transposed else ()
        prepared = prepared_weights([words], (conv[0], geometry.channels, geometry.groups, *order), words, conv)
        return conv.buffer_info()[0], prepared.data_ptr(), (conv, prepared)

    return dict(derived=('geometry', 'weight'), weights=[weight(fixed, inputs, 'w_words')], derive=derive)


def image_convolution(fixed: dict, inputs: dict) -> dict | None:
    call = fixed | inputs
    batch, *image, _ = call['x_words'].shape
    return convolution(call['geometry'], batch, image, fixed, inputs)


def sums(cpu, op: str, fixed: dict, inputs: dict, own: dict | None, lies: Callable[..., Made]) -> Callable | None:
    if own is None:
        return None
    made = dict(sums=lies(getattr(checks, op)(**fixed, **inputs), torch.int32))
    return lowered(cpu, op, CONV2D, ['geometry', 'x_words', 'weight', 'sums'], fixed, inputs, made, ['sums'], **own)


def lower_conv2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    return sums(cpu, 'binary_conv2d', fixed, inputs, image_convolution(fixed, inputs), image)


def lower_conv_transpose2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    return sums(cpu, 'binary_conv_transpose2d', fixed, inputs, image_convolution(fixed, inputs), image)


def lower_linear(cpu, fixed: dict, inputs: dict) -> Callable | None:
    """A 1x1 convolution of an image of one row."""
    call = fixed | inputs
    pixels = prod(call['x_words'].shape[:-1])
    if not pixels:
        return None
    own = convolution(linear_geometry(call['features'], len(call['w_words'])), 1, (1, pixels), fixed, inputs)
    return sums(cpu, 'binary_linear', fixed, inputs, own, rows)


def lower_conv2d_sign(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    places, held = vectors(fixed, inputs, 'threshold')
    own = image_convolution(fixed, inputs)
    if places is None or own is None:
        return None
    width, flip = call['threshold'].shape[0], [] if call['flip'] is None else [weight(fixed, inputs, 'flip')]

    def derive(words: Tensor, *flip_and_settings: Any) -> tuple:
        *flip, isa, threads = flip_and_settings
        flips = flip[0].to(torch.int32).contiguous() if flip else torch.zeros(width, dtype=torch.int32)
        *addresses, alive = own['derive'](words, isa, threads)
        return *addresses, flips.data_ptr(), (alive, flips)

    record = fields('Signs', width=width, out_groups=call['out_groups'], flip='flips', words='words', **places)
    made = dict(words=rows(checks.binary_conv2d_sign(**call)))
    return lowered(cpu, 'binary_conv2d_sign', CONV2D_SIGN, ['geometry', 'x_words', 'weight', *record], fixed, inputs, made,
                   ['words'], holds=held, derived=(*own['derived'], 'flips'), weights=[*own['weights'], *flip], derive=derive)


def lower_block2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    return block(cpu, 'binary_block2d', fixed, inputs)


def lower_folded_block2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    shortcut, width = call['shortcut'], call['epilogue'].width
    channels = width if shortcut is None else shortcut.shape[1]
    narrow = channels != width
    if narrow and (channels % CHUNK or call['geometry'].groups != 1 or width != call['geometry'].outputs):
        return None
    return block(cpu, 'folded_block2d', fixed, inputs, shortcut_width=channels if narrow else 0, fold=call['fold'])


def block(cpu, op: str, fixed: dict, inputs: dict, **more: int) -> Callable | None:
    call = fixed | inputs
    own = image_convolution(fixed, inputs)
    shortcut, out, dtype = call['shortcut'], call.get('out'), call['dtype']
    fused, held = fused_fields(fixed, inputs, dtype, shortcut, 'stream' if out is None else 'out', **more)
    if fused is None or own is None or not (is_image(shortcut) and is_image(out)) or 'shortcut' in fixed or 'out' in fixed:
        return None
    words, stream = getattr(checks, op)(**call)
    # What is not wanted has the shape [0], and null for an address.
    made = dict(words=rows(words)) | ({} if out is not None else dict(stream=(image if call['keep'] else rows)(stream, dtype)))
    return lowered(cpu, op, BLOCK2D, ['geometry', 'x_words', 'weight', *fused], fixed, inputs, made,
                   ['words', 'stream' if out is None else 'out'], holds=held, **own)


def fused_fields(fixed: dict, inputs: dict, dtype: torch.dtype, shortcut: Tensor | None, stream: str | int,
                 shortcut_width: int = 0, fold: int = 1) -> tuple[list[int | str] | None, list[Tensor]]:
    """The struct of an epilogue, and what keeps its memory; None as in `vectors`."""
    epilogue = (fixed | inputs)['epilogue']
    places, held = vectors(spread(fixed), spread(inputs), *VECTORS)
    codes, kept = dict(out_scale=0, out_zero=0), []
    if dtype in checks.BYTES:
        codes, kept = vectors(fixed, inputs, 'out_scale', 'out_zero')
    return None if places is None or codes is None else fields(
        'Fused', width=epilogue.width, out_groups=epilogue.out_groups, act=ACTS[epilogue.act], dtype=STREAMS[dtype],
        shortcut_dtype=NO_SHORTCUT if shortcut is None else DTYPES[shortcut.dtype],
        shortcut=0 if shortcut is None else 'shortcut', stream=stream, words='words', stream_first=0,
        shortcut_width=shortcut_width, fold=fold, **codes, **places), held + kept


def prepare(words: Tensor, conv: array) -> Tensor:
    library, words, at = engine.library(), dense(words), conv.buffer_info()[0]
    made = torch.zeros(library.bnn_prepared_bytes(at), dtype=torch.uint8)
    library.bnn_prepare(at, words.data_ptr(), 0, made.data_ptr())
    return made


prepared_weights = Derived(prepare)


# --- the real-valued parts of a network --------------------------------------------------------------------------------------

def lower_downsample2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
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
    record = fields('Downsample', batch=batch, height=height, width=width, channels=channels, outputs=shape[1],
                    pool=min(pool, max(height, width)), dtype=DTYPES[x.dtype], x='x', weight='matrix', bias='padded',
                    y='stream')
    return lowered(cpu, 'downsample2d', DOWNSAMPLE, ['isa', 'threads', *record], fixed, inputs,
                   dict(stream=image(shape, x.dtype)), ['stream'], derived=('matrix', 'padded'),
                   weights=[weight(fixed, inputs, 'weight'), weight(fixed, inputs, 'bias')], derive=derive)


def prepare_downsample(matrix: Tensor, isa: int) -> Tensor:
    library, matrix, (outputs, channels) = engine.library(), dense(matrix), matrix.shape
    made = torch.zeros(library.bnn_downsample_bytes(isa, channels, outputs), dtype=torch.uint8)
    library.bnn_prepare_downsample(isa, channels, outputs, matrix.data_ptr(), made.data_ptr())
    return made


prepared_downsamples = Derived(prepare_downsample)


def lower_stem2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, dtype = call['x'], call['dtype']
    fused, held = fused_fields(fixed, inputs, dtype, None, 'stream')
    if fused is None or 'x' not in inputs:
        return None
    interleaved = is_interleaved(x)

    def derive(kernels: Tensor, *settings: int) -> tuple:
        made = prepared_stems([kernels], (interleaved,))
        return made.data_ptr(), made

    words, stream = checks.stem2d(**call)
    return lowered(cpu, 'stem2d', STEM, ['isa', 'threads', *stem_fields(x, call['geometry']), *fused], fixed, inputs,
                   dict(words=rows(words), stream=image(stream, dtype)), ['words', 'stream'], holds=held, derived=('kernels',),
                   weights=[weight(fixed, inputs, 'weight')], derive=derive)


def stem_fields(x: Tensor, geometry: Stem2dGeometry) -> list[int | str]:
    batch, channels, *size = x.shape
    sums, pooled = geometry.sizes(size)
    inner, pixel_step = (channels, 1) if is_interleaved(x) else (1, x.stride(3))
    image_step, channel_step, row_step = x.stride()[:3]
    # Rows are laid out by their step.
    stride = [s if side > 1 else 1 for s, side in zip(geometry.stride, sums, strict=True)]
    wide = dict(kernel=geometry.kernel, stride=stride, pad=geometry.padding)
    pairs = {name: (side, other * inner) for name, (side, other) in wide.items()} | dict(
        out=sums, pool=geometry.window, pool_stride=geometry.window_stride, pool_pad=geometry.window_padding, pooled=pooled)
    sides = {f'{name}_{axis}': side for name, both in pairs.items() for axis, side in zip('hw', both, strict=True)}
    return fields('Stem', batch=batch, channels=channels // inner, height=size[0], width=size[1] * inner,
                  image_step=image_step, channel_step=channel_step, row_step=row_step, pixel_step=pixel_step,
                  dtype=DTYPES[x.dtype], outputs=geometry.outputs, x='x', weight='kernels', **sides)


def is_interleaved(x: Tensor) -> bool:
    """Whether a row of pixels lies in memory like a longer one of a single channel: that is how a stem then reads it."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x.stride(3) == x.shape[1]


def prepare_stem(kernels: Tensor, interleaved: bool) -> Tensor:
    """[O, C, kH, kW] to [panels, taps, PANEL], taps in the order in which an image is read."""
    kernels = kernels.detach().movedim(1, -1) if interleaved else kernels.detach()
    taps = F.pad(kernels.flatten(1), (0, 0, 0, -kernels.shape[0] % PANEL))
    return taps.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()


prepared_stems = Derived(prepare_stem)


LOWERINGS: dict[str, Callable[..., Callable | None]] = {
    'pack_activations': lower_pack_activations, 'pack_features': lower_pack_features, 'binary_conv2d': lower_conv2d,
    'binary_conv_transpose2d': lower_conv_transpose2d, 'binary_linear': lower_linear, 'binary_conv2d_sign': lower_conv2d_sign,
    'binary_block2d': lower_block2d, 'folded_block2d': lower_folded_block2d, 'downsample2d': lower_downsample2d,
    'stem2d': lower_stem2d}
