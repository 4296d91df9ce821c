"""Which call of the engine runs an operator for inputs of one kind: see `Backend.bind`."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checks
from . import engine
from .calls import BLOCK2D, CONV2D, CONV2D_SIGN, DOWNSAMPLE, PACK, STEM, WORD_ALIGNED, Call, Made
from .engine import DTYPES, address

NOTHING = (0,), (1,)  # shape and strides of a result that is not wanted


def image(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Made:
    """In channels-last memory."""
    _, channels, height, width = shape
    return Made(tuple(shape), (height * width * channels, 1, width * channels, channels), dtype)


def words(shape: tuple[int, int, int, int]) -> Made:
    _, height, width, count = shape
    return Made(tuple(shape), (height * width * count, width * count, count, 1), torch.int32)


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


def convolution(cpu, call: dict, fixed: dict) -> dict:
    """What all convolutions keep: 'geometry' and 'weight'."""
    from .backend import prepare
    numbers = [call[name] for name in ('channels', 'stride', 'padding', 'dilation', 'groups', 'pad_value')]
    shapes = call['x_words'].shape, call['w_words'].shape

    def keep(weight: Tensor, *settings: int) -> tuple:
        geometry = cpu.geometry(*shapes, *numbers)
        prepared = engine.prepared.get(weight, geometry.weights, prepare, geometry)
        return geometry.address, prepared.data_ptr(), (geometry, prepared)

    return dict(kept=('geometry', 'weight'), weights=[fixed.get('w_words', 'w_words')], keep=keep)


def bind_conv2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    if not (call['x_words'].is_contiguous() and has_version(call['w_words'])):
        return None

    def slow(x_words: Tensor, w_words: Tensor | None = None) -> Tensor:
        return cpu.binary_conv2d(**fixed | dict(x_words=x_words) | ({} if w_words is None else dict(w_words=w_words)))

    fields = ['geometry', 'x_words', 'weight', 'sums']
    made = dict(sums=image(checks.binary_conv2d(**call), torch.int32))
    return Call(CONV2D, fields, inputs, made, ['sums'], slow, **convolution(cpu, call, fixed))


def bind_block2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    from .backend import ACTS, NO_SHORTCUT
    call = fixed | inputs
    vectors = [pinned(call[name]) for name in ('scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold')]
    shortcut, out, dtype = call['shortcut'], call['out'], call['dtype']
    if set(inputs) != {'x_words', 'shortcut', 'out'} or not (
            call['x_words'].is_contiguous() and has_version(call['w_words']) and all(map(is_vector, vectors)) and
            all(is_image(x) for x in (shortcut, out) if x is not None)):
        return None
    words_shape, stream_shape = checks.binary_block2d(**call)
    made = dict(words=words(words_shape) if call['pack'] else Made(*NOTHING, torch.int32))
    if out is None:
        made['stream'] = image(stream_shape, dtype) if call['keep'] else Made(*NOTHING, dtype)
    stream = 'stream' if out is None else 'out'
    fields = ['geometry', 'x_words', 'weight', vectors[0].shape[0], call['out_groups'], ACTS[call['act']], DTYPES[dtype],
              NO_SHORTCUT if shortcut is None else DTYPES[shortcut.dtype], *map(address, vectors),
              0 if shortcut is None else 'shortcut', stream, 'words', 0]
    return Call(BLOCK2D, fields, inputs, made, ['words', stream], lambda **own: cpu.binary_block2d(**fixed, **own), vectors,
                **convolution(cpu, call, fixed))


def bind_conv2d_sign(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    threshold, flip, w_words = pinned(call['threshold']), call['flip'], call['w_words']
    flip = torch.zeros_like(threshold) if flip is None else flip
    if set(inputs) != {'x_words'} or not (
            call['x_words'].is_contiguous() and has_version(w_words, flip) and is_vector(threshold)):
        return None
    own = convolution(cpu, call, fixed)

    def keep(weight: Tensor, flip: Tensor, *settings: int) -> tuple:
        flips = flip.to(torch.int32)
        *addresses, alive = own['keep'](weight, *settings)
        return *addresses, flips.data_ptr(), (alive, flips)

    fields = ['geometry', 'x_words', 'weight', threshold.shape[0], call['out_groups'], address(threshold), 'flips', 'words']
    return Call(CONV2D_SIGN, fields, inputs, dict(words=words(checks.binary_conv2d_sign(**call))), ['words'],
                lambda x_words: cpu.binary_conv2d_sign(x_words=x_words, **fixed), threshold, (*own['kept'], 'flips'),
                [w_words, flip], keep)


def bind_pack_activations(cpu, fixed: dict, inputs: dict) -> Call | None:
    call = fixed | inputs
    x, threshold, groups = call['x'], call['threshold'], call['groups']
    batch, channels, height, width = x.shape
    plain = threshold is None or (threshold.dtype == torch.float32 and threshold.shape == (channels,) and is_vector(threshold))
    if not plain or not (is_image(x) or x.is_contiguous()):
        return None
    plane = 0 if is_image(x) else height * width
    bound = pinned(fixed.get('threshold'))
    fields = ['isa', 'threads', batch * height * width, channels, groups, DTYPES[x.dtype], plane, 'x',
              'threshold' if 'threshold' in inputs else address(bound), 'words']
    return Call(PACK, fields, inputs, dict(words=words(checks.pack_activations(**call))), ['words'],
                lambda x, threshold=bound: cpu.pack_activations(x, threshold, groups), bound)


def bind_downsample2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    from .backend import PANEL, prepare_downsample
    call = fixed | inputs
    x, weight, bias, pool = call['x'], call['weight'], call['bias'], call['pool']
    if set(inputs) != {'x'} or not (is_image(x) and has_version(weight, bias)):
        return None

    def keep(weight: Tensor, bias: Tensor, isa: int, threads: int) -> tuple:
        padded = F.pad(bias, (0, -bias.shape[0] % PANEL))
        made = engine.prepared.get(weight, ('downsample', isa), prepare_downsample, isa)
        return made.data_ptr(), padded.data_ptr(), (made, padded)

    shape = checks.downsample2d(**call)
    batch, channels, height, width = x.shape
    fields = ['isa', 'threads', batch, height, width, channels, shape[1], min(pool, max(height, width)), DTYPES[x.dtype], 'x',
              'weight', 'bias', 'stream']
    return Call(DOWNSAMPLE, fields, inputs, dict(stream=image(shape, x.dtype)), ['stream'],
                lambda x: cpu.downsample2d(x, **fixed), None, ('weight', 'bias'), [weight, bias], keep)


def bind_stem2d(cpu, fixed: dict, inputs: dict) -> Call | None:
    from .backend import ACTS, NO_SHORTCUT, is_interleaved, stem_struct, stem_weight
    call = fixed | inputs
    x, weight, dtype = call['x'], call['weight'], call['dtype']
    vectors = [pinned(call[name]) for name in ('scale', 'bias', 'gamma', 'slope', 'zeta', 'threshold')]
    if set(inputs) != {'x'} or not (has_version(weight) and all(map(is_vector, vectors))):
        return None
    interleaved = is_interleaved(x)

    def keep(weight: Tensor, *settings: int) -> tuple:
        made = stem_weight(weight, interleaved)
        return made.data_ptr(), made

    words_shape, stream_shape = checks.stem2d(**call)
    stem = stem_struct(x, weight.shape, *(call[name] for name in (
        'stride', 'padding', 'window', 'window_stride', 'window_padding')))
    fields = ['isa', 'threads', *stem[:-2], 'x', 'weight', vectors[0].shape[0], call['out_groups'], ACTS[call['act']],
              DTYPES[dtype], NO_SHORTCUT, *map(address, vectors), 0, 'stream', 'words', 0]
    made = dict(words=words(words_shape) if call['pack'] else Made(*NOTHING, torch.int32), stream=image(stream_shape, dtype))
    return Call(STEM, fields, inputs, made, ['words', 'stream'], lambda x: cpu.stem2d(x, **fixed), vectors, ('weight',),
                [weight], keep)


BINDINGS: dict[str, Callable[..., Call | None]] = {
    'binary_conv2d': bind_conv2d, 'binary_block2d': bind_block2d, 'binary_conv2d_sign': bind_conv2d_sign,
    'pack_activations': bind_pack_activations, 'downsample2d': bind_downsample2d, 'stem2d': bind_stem2d}
