"""Operators of the engine for calls of one kind, with everything worked out but where the tensors lie: see `Backend.bind`.

In eager code a small layer would otherwise take longer in Python than in the engine.
"""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from . import engine
from .engine import DTYPES, address

WORD_ALIGNED = 3  # bits of an address that are zero where an int32 or float32 may start


class Kept:
    """`make(tensors)`, and again when one is another object or was written to, or when the engine has other settings.

    Call it with the tensors; the result and what it was made of stay alive until then.
    """

    def __init__(self, make: Callable[[], object]):
        self.make, self.state = make, (None, None, None, None, None)

    def __call__(self, *tensors: Tensor) -> object:
        isa, threads = engine.isa_number(), torch.get_num_threads()
        known, versions, known_isa, known_threads, made = self.state  # one read: other threads may write
        if known is not None and isa == known_isa and threads == known_threads:
            for reference, version, tensor in zip(known, versions, tensors):  # noqa: B905 (as many, and this is quicker)
                if reference() is not tensor or version != tensor._version:
                    break
            else:
                return made
        versions = [tensor._version for tensor in tensors]
        made = self.make(*tensors, isa, threads)
        self.state = [weakref.ref(tensor) for tensor in tensors], versions, isa, threads, made
        return made


def raise_sentence(sentence: bytes | None) -> None:
    if sentence is not None:
        raise RuntimeError(sentence.decode())


def image_strides(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Of channels-last memory."""
    _, channels, height, width = shape
    return height * width * channels, 1, width * channels, channels


def words_strides(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _, height, width, words = shape
    return height * width * words, width * words, words, 1


def has_version(*tensors: Tensor) -> bool:
    return not any(tensor.is_inference() for tensor in tensors)


def is_image(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def pinned(v: Tensor | None) -> Tensor | None:
    """The same values under another name, so that their memory stays although `v.data` be replaced."""
    return None if v is None else v.detach()


def is_vector(v: Tensor | None) -> bool:
    """Whether the engine can read it where it lies."""
    return v is None or (v.is_contiguous() and not v.data_ptr() & WORD_ALIGNED)


class Convolution:
    """What all convolutions share: (address of the geometry, address of the prepared weight, what keeps both alive)."""

    def __init__(self, cpu, call: dict):
        numbers = [call[name] for name in ('channels', 'stride', 'padding', 'dilation', 'groups', 'pad_value')]
        self.arguments = call['x_words'].shape, call['w_words'].shape, *numbers
        self.cpu, self.kept = cpu, Kept(self.make)

    def make(self, weight: Tensor, *settings) -> tuple:
        from .backend import prepare
        geometry = self.cpu.geometry(*self.arguments)
        prepared = engine.prepared.get(weight, geometry.weights, prepare, geometry)
        return geometry.address, prepared.data_ptr(), (geometry, prepared)


def bind_conv2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    if not (call['x_words'].is_contiguous() and has_version(call['w_words'])):
        return None
    kept = Convolution(cpu, call).kept
    function, shape = engine.library().bnn_conv2d, checks.binary_conv2d(**call)
    strides, fixed_weight, slow = image_strides(shape), fixed.get('w_words'), cpu.binary_conv2d

    def run(x_words: Tensor, w_words: Tensor = fixed_weight) -> Tensor:
        at = x_words.data_ptr()
        if at & WORD_ALIGNED:
            return slow(**{**fixed, 'x_words': x_words, 'w_words': w_words})
        geometry, weight, _ = kept(w_words)
        y = x_words.new_empty_strided(shape, strides)
        raise_sentence(function(geometry, at, weight, y.data_ptr()))
        return y

    return run


def bind_block2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    from .backend import ACTS, NO_SHORTCUT
    call = fixed | inputs
    vectors = [pinned(call[name]) for name in ('scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold')]
    shortcut, w_words, dtype = call['shortcut'], call['w_words'], call['dtype']
    images = [x for x in (shortcut, call['out']) if x is not None]
    if set(inputs) != {'x_words', 'shortcut', 'out'} or not (
            call['x_words'].is_contiguous() and has_version(w_words) and all(map(is_vector, vectors)) and
            all(map(is_image, images))):
        return None
    kept = Convolution(cpu, call).kept
    words_shape, stream_shape = checks.binary_block2d(**call)
    words_stride = words_strides(words_shape) if call['pack'] else (1,)
    stream_stride = image_strides(stream_shape) if call['keep'] else (1,)
    template = engine.struct(
        vectors[0].shape[0], call['out_groups'], ACTS[call['act']], DTYPES[dtype],
        NO_SHORTCUT if shortcut is None else DTYPES[shortcut.dtype], *map(address, vectors), 0, 0, 0, 0)
    function, slow = engine.library().bnn_block2d, cpu.binary_block2d
    to_shortcut, to_stream, to_words = range(11, 14)

    def run(x_words: Tensor, shortcut: Tensor | None, out: Tensor | None) -> tuple[Tensor, Tensor]:
        fused = template[:]
        at = x_words.data_ptr()
        stream = x_words.new_empty_strided(stream_shape, stream_stride, dtype=dtype) if out is None else out
        to = fused[to_stream] = stream.data_ptr()
        if shortcut is not None:
            fused[to_shortcut] = shortcut.data_ptr()
        if (at | to | fused[to_shortcut]) & WORD_ALIGNED:
            return slow(x_words=x_words, shortcut=shortcut, out=out, **fixed)
        words = x_words.new_empty_strided(words_shape, words_stride)
        fused[to_words] = words.data_ptr()
        geometry, weight, _ = kept(w_words)
        raise_sentence(function(geometry, at, weight, fused.buffer_info()[0]))
        return words, stream

    run.holds = vectors
    return run


def bind_conv2d_sign(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    threshold, flip, w_words = pinned(call['threshold']), call['flip'], call['w_words']
    flip = torch.zeros_like(threshold) if flip is None else flip
    if set(inputs) != {'x_words'} or not (
            call['x_words'].is_contiguous() and has_version(w_words, flip) and is_vector(threshold)):
        return None
    kept = Convolution(cpu, call).kept
    flips = Kept(lambda flip, *settings: flip.to(torch.int32))
    shape = checks.binary_conv2d_sign(**call)
    strides, template = words_strides(shape), engine.struct(threshold.shape[0], call['out_groups'], address(threshold), 0, 0)
    function, slow = engine.library().bnn_conv2d_sign, cpu.binary_conv2d_sign

    def run(x_words: Tensor) -> Tensor:
        at = x_words.data_ptr()
        if at & WORD_ALIGNED:
            return slow(x_words=x_words, **fixed)
        signs, flipped = template[:], flips(flip)
        words = x_words.new_empty_strided(shape, strides)
        signs[3], signs[4] = flipped.data_ptr(), words.data_ptr()
        geometry, weight, _ = kept(w_words)
        raise_sentence(function(geometry, at, weight, signs.buffer_info()[0]))
        return words

    run.holds = threshold
    return run


def bind_pack_activations(cpu, fixed: dict, inputs: dict) -> Callable | None:
    call = fixed | inputs
    x, threshold, groups = call['x'], call['threshold'], call['groups']
    batch, channels, height, width = x.shape
    plain = threshold is None or (threshold.dtype == torch.float32 and threshold.shape == (channels,) and is_vector(threshold))
    if not plain or not (is_image(x) or x.is_contiguous()):
        return None
    plane = 0 if is_image(x) else height * width
    shape = checks.pack_activations(**call)
    strides, misaligned = words_strides(shape), x.element_size() - 1
    template = engine.struct(batch * height * width, channels, groups, DTYPES[x.dtype], plane, 0, 0, 0)
    function, fixed_threshold, slow = engine.library().bnn_pack, pinned(fixed.get('threshold')), cpu.pack_activations

    def run(x: Tensor, threshold: Tensor | None = fixed_threshold) -> Tensor:
        packing = template[:]
        packing[5], packing[6] = x.data_ptr(), address(threshold)
        if packing[5] & misaligned or packing[6] & WORD_ALIGNED:
            return slow(x, threshold, groups)
        words = x.new_empty_strided(shape, strides, dtype=torch.int32)
        packing[7] = words.data_ptr()
        raise_sentence(function(engine.isa_number(), torch.get_num_threads(), packing.buffer_info()[0]))
        return words

    return run


def bind_downsample2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    from .backend import PANEL, prepare_downsample
    call = fixed | inputs
    x, weight, bias, pool = call['x'], call['weight'], call['bias'], call['pool']
    if set(inputs) != {'x'} or not (is_image(x) and has_version(weight, bias)):
        return None

    def make(weight: Tensor, bias: Tensor, isa: int, threads: int) -> tuple:
        padded = F.pad(bias, (0, -bias.shape[0] % PANEL))
        made = engine.prepared.get(weight, ('downsample', isa), prepare_downsample, isa)
        return made.data_ptr(), padded.data_ptr(), (made, padded)

    kept, shape = Kept(make), checks.downsample2d(**call)
    strides, misaligned = image_strides(shape), x.element_size() - 1
    batch, channels, height, width = x.shape
    window = min(pool, max(height, width))
    template = engine.struct(batch, height, width, channels, shape[1], window, DTYPES[x.dtype], 0, 0, 0, 0)
    function, slow = engine.library().bnn_downsample, cpu.downsample2d

    def run(x: Tensor) -> Tensor:
        down = template[:]
        down[7] = x.data_ptr()
        if down[7] & misaligned:
            return slow(x, **fixed)
        down[8], down[9], _ = kept(weight, bias)
        y = x.new_empty_strided(shape, strides)
        down[10] = y.data_ptr()
        raise_sentence(function(engine.isa_number(), torch.get_num_threads(), down.buffer_info()[0]))
        return y

    return run


def bind_stem2d(cpu, fixed: dict, inputs: dict) -> Callable | None:
    from .backend import ACTS, NO_SHORTCUT, is_interleaved, stem_struct, stem_weight
    call = fixed | inputs
    x, weight, dtype = call['x'], call['weight'], call['dtype']
    vectors = [pinned(call[name]) for name in ('scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold')]
    if set(inputs) != {'x'} or not (has_version(weight) and all(map(is_vector, vectors))):
        return None

    interleaved = is_interleaved(x)

    def make(weight: Tensor, isa: int, threads: int) -> tuple:
        made = stem_weight(weight, interleaved)
        return made.data_ptr(), made

    kept, misaligned = Kept(make), x.element_size() - 1
    words_shape, stream_shape = checks.stem2d(**call)
    words_stride, stream_stride = words_strides(words_shape) if call['pack'] else (1,), image_strides(stream_shape)
    geometry = stem_struct(x, weight.shape, *(call[name] for name in (
        'stride', 'padding', 'window', 'window_stride', 'window_padding')))
    epilogue = engine.struct(vectors[0].shape[0], call['out_groups'], ACTS[call['act']], DTYPES[dtype], NO_SHORTCUT,
                             *map(address, vectors), 0, 0, 0, 0)
    function, slow = engine.library().bnn_stem, cpu.stem2d
    to_stream, to_words = 12, 13

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        stem, fused = geometry[:], epilogue[:]
        stem[-2] = x.data_ptr()
        if stem[-2] & misaligned:
            return slow(x, **fixed)
        stem[-1], _ = kept(weight)
        stream = x.new_empty_strided(stream_shape, stream_stride, dtype=dtype)
        words = x.new_empty_strided(words_shape, words_stride, dtype=torch.int32)
        fused[to_stream], fused[to_words] = stream.data_ptr(), words.data_ptr()
        raise_sentence(function(engine.isa_number(), torch.get_num_threads(), stem.buffer_info()[0], fused.buffer_info()[0]))
        return words, stream

    run.holds = vectors
    return run


BINDINGS = {'binary_conv2d': bind_conv2d, 'binary_block2d': bind_block2d, 'binary_conv2d_sign': bind_conv2d_sign,
            'pack_activations': bind_pack_activations, 'downsample2d': bind_downsample2d, 'stem2d': bind_stem2d}
