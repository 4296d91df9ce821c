"""From shapes to launches. What a call is compiled for, its grid and its numbers are found once for each kind of input
(`operator`); a call then allocates its results and launches, so that it can be captured in a CUDA graph."""

from collections.abc import Callable, Sequence
from functools import cache, partial, wraps
from math import prod
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..epilogue import Epilogue
from ..geometry import Conv2dGeometry, Pool2dGeometry
from ..layout import words_per_group
from . import epilogue as epilogues
from . import pack
from .device import architecture, on
from .tables import tile
from .versions import INTERPRETED

PIXELS_LIMIT = 2**31  # pixels are counted in int32
ALIGNMENT = 16  # bytes: kernels are compiled for addresses that are multiples of it
ELEMENTS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.int16 if INTERPRETED else tl.bfloat16,  # see epilogue.py
    torch.uint8: tl.uint8,
    torch.int8: tl.int8,
}
NO_CODING = None, None  # 1 / scale and zero point of a stream in eight bits


def operator(plan: Callable[..., Callable]) -> Callable:
    """Makes the method of an operator from one that plans it.

    Args:
        plan: takes the operator's arguments, of which it looks at the metadata only, and returns what runs calls with
            arguments of the same metadata; that takes them by name.
    """
    @wraps(plan)
    def run(self, *arguments, **call):
        call |= dict(zip(names, arguments, strict=False))
        return plan(self, **call)(**call)

    names = plan.__code__.co_varnames[1:plan.__code__.co_argcount]
    run.plan = plan
    return run


class Planned:
    """A backend whose operators are `operator`s: bound ones keep their plan."""

    def bind(self, op: str, fixed: dict, inputs: dict) -> Callable:
        return partial(getattr(type(self), op).plan(self, **fixed, **inputs), **fixed)


class Launch:
    """A kernel with its grid and everything that is no tensor, launched on tensors.

    The first launch goes through Triton, which compiles; later ones go straight to what it has compiled, so the tensors must
    have the same dtypes, be None where they were, and lie on the same device; `aligned` sees to their addresses.

    Attributes:
        kernel: its parameters are tensors first. programs: the size of the grid.
        numbers: the other parameters by name. options: of the compiler.
    """

    def __init__(self, kernel: Any, programs: int, numbers: dict[str, Any], **options):
        self.kernel, self.programs, self.options = kernel, programs, options
        self.numbers = {name: numbers[name] for name in kernel.arg_names if name in numbers}
        self.values, self.compiled = tuple(self.numbers.values()), None

    def __call__(self, *tensors: Any) -> None:
        """`tensors`: also numbers that change, where the kernel has them next."""
        if self.compiled is not None:
            self.compiled(*tensors, *self.values)
        elif INTERPRETED:
            self.kernel[self.programs,](*map(bits, tensors), *self.values, **self.options)
        else:
            compiled = self.kernel[self.programs,](*tensors, *self.values, **self.options)
            self.compiled = compiled[self.programs, 1, 1]


def extent(shape: Sequence[int], memory_format: torch.memory_format = torch.contiguous_format) -> tuple[tuple, tuple]:
    """Shape and strides, for `new_empty_strided`: that takes half the time of what finds strides at each call."""
    return shape, torch.empty(shape, device='meta', memory_format=memory_format).stride()


def aligned(tensor: Tensor | None, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor | None:
    """The tensor, dense and at a multiple of ALIGNMENT: itself or a copy."""
    if tensor is None:
        return None
    tensor = tensor.detach() if tensor.requires_grad else tensor
    if tensor.data_ptr() % ALIGNMENT:
        return tensor.clone(memory_format=memory_format)
    return tensor.contiguous(memory_format=memory_format)


class Results(NamedTuple):
    """Where a convolution writes, and what from; None for what does not take part.

    Either `sums`, or `scale` and what belongs to the float epilogue, or `threshold` alone (int32) and `flip` (uint8).
    """

    sums: Tensor | None = None  # int32 [pixels, O]
    words: Tensor | None = None  # int32 [pixels, out_groups * words]
    out: Tensor | None = None  # [pixels, P], may be the shortcut
    shortcut: Tensor | None = None  # [pixels, P]
    scale: Tensor | None = None
    bias: Tensor | None = None
    gamma: Tensor | None = None
    slope: Tensor | None = None
    zeta: Tensor | None = None
    threshold: Tensor | None = None
    flip: Tensor | None = None


def convolution(kernel: Callable, name: str, images: Sequence[int], device: torch.device, geometry: Conv2dGeometry,
                channels: int, out_groups: int = 1, act: str = 'identity', dtype: torch.dtype = torch.float32,
                window: Pool2dGeometry | None = None) -> Callable[..., None]:
    """What runs `kernel` on images: takes its operands, the results, and in which eight bits the stream is stored.

    Args:
        kernel, name: the kernel and its section in tables.toml.
        images: how many, height and width.
        channels: P, output channels behind the epilogue, which runs apart where words cross the tiles of the kernel.
        window: of the sums, the largest is taken.
    """
    batch, *image = images
    size = geometry.size(image)
    pixels = batch * prod(size)
    limit(max(pixels, batch * prod(image)))
    if pixels == 0:
        return lambda operands, results, coding=NO_CODING: None
    arch = architecture(device)
    replicas = channels // geometry.outputs
    constants, options = _constants(name, arch, geometry, replicas, act, ELEMENTS[dtype])
    groups = 1 if constants['ONE_TERM'] else geometry.groups  # that a tile keeps to
    tiles = groups * -(-geometry.outputs // groups // constants['BLOCK_N'])
    numbers = dict(pixels=pixels, height=image[0], width=image[1], out_height=size[0], out_width=size[1])
    launch = Launch(kernel, tiles * -(-pixels // constants['BLOCK_M']), numbers | constants, **options)
    fit = window is None and words_fit(groups, geometry.outputs, replicas, out_groups)
    finish = None if fit else finishing(arch, (batch, *size), geometry.outputs, channels, out_groups, act, dtype,
                                        window or Pool2dGeometry('max'))

    def run(operands: tuple[Tensor, ...], results: Results, coding: tuple[Tensor | None, Tensor | None] = NO_CODING) -> None:
        with on(device):
            if fit or (results.words is None and window is None):
                launch(*operands, *results)
            else:
                sums = operands[0].new_empty((pixels, geometry.outputs), dtype=torch.int32)
                launch(*operands, *Results(sums=sums))
                finish(*coding, sums, *results[1:])
    return run


def words_shape(x_words: Tensor, geometry: Conv2dGeometry, channels: int, groups: int) -> tuple[int, int, int, int]:
    """Of the words behind a convolution: [N, H', W', groups * words]."""
    batch, _, *size = geometry.shape(x_words.shape)
    return batch, *size, groups * words_per_group(channels, groups)


def block_call(x_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, dtype: torch.dtype, pack: bool, keep: bool,
               fill: Callable[..., None]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The calls of `binary_block2d`, for which `fill` takes words, packed weight, both results, shortcut and vectors."""
    words_extent = extent(words_shape(x_words, geometry, epilogue.width, epilogue.out_groups) if pack else (0,))
    batch, _, *size = geometry.shape(x_words.shape)
    layout = torch.channels_last
    stream_extent = extent((batch, epilogue.width, *size), layout)

    def call(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue, shortcut: Tensor | None,
             dtype: torch.dtype, pack: bool, keep: bool, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        words, stream = x_words.new_empty_strided(*words_extent), out
        if keep and (out is None or out.data_ptr() % ALIGNMENT):
            stream = x_words.new_empty_strided(*stream_extent, dtype=dtype)
        scale, bias, _, gamma, slope, zeta, threshold, _ = epilogue
        fill(x_words, w_words, words if pack else None, stream, aligned(shortcut, layout), aligned(scale), aligned(bias),
             aligned(gamma), aligned(slope), aligned(zeta), aligned(threshold))
        if out is not None and stream is not out:
            stream = out.copy_(stream)
        return words, x_words.new_empty(0, dtype=dtype) if stream is None else stream
    return call


def words_fit(groups: int, outputs: int, replicas: int, out_groups: int) -> bool:
    """Whether every word of the result lies in one tile of a kernel: no word crosses a group or a replica."""
    whole = (groups == 1 or outputs // groups % 32 == 0) and (replicas == 1 or outputs % 32 == 0)
    return whole and (out_groups == 1 or outputs * replicas // out_groups % 32 == 0)


def packing(x: Tensor, threshold: Tensor | None, groups: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """What packs floats like `x` [images, C, pixels], of any strides, to int32 [images, pixels, groups * words]."""
    images, channels, pixels = x.shape
    limit(images * pixels)
    words = groups * -(-channels // groups // 32)
    device = x.device
    tiles, options = split(tile('pack', architecture(device), words * 32))
    numbers = dict(pixels=pixels, image_stride=x.stride(0), pixel_stride=x.stride(2), channel_stride=x.stride(1),
                   CHANNELS=channels, GROUPS=groups, THRESHOLDS=0 if threshold is None else threshold.numel(), **tiles)
    programs = images * -(-pixels // tiles['BLOCK_M']) * -(-words * 32 // tiles['BLOCK_N'])
    # A view keeps its strides, and a copy of it would read all of it once more: compiled for both kinds of addresses.
    launches = [Launch(pack.pack_signs, programs, numbers, **options) for _ in range(2)]
    sizes = extent((images, pixels, words))

    def run(x: Tensor, threshold: Tensor | None) -> Tensor:
        result = x.new_empty_strided(*sizes, dtype=torch.int32)
        if programs:
            with on(device):
                launches[x.data_ptr() % ALIGNMENT == 0](x.detach(), aligned(threshold), result)
        return result
    return run


def limit(pixels: int) -> None:
    if pixels >= PIXELS_LIMIT:
        raise ValueError(f'one call reads or writes {pixels} pixels, the limit is 2**31 - 1: split the batch.')


@cache
def _constants(name: str, arch: str, geometry: Conv2dGeometry, replicas: int, act: str, element) -> tuple[dict, dict]:
    """Constants of the kernel and options of the compiler."""
    tiles, options = split(tile(name, arch, geometry.group_outputs))
    if name == 'bitplane':
        tiles['ASM'] = arch.startswith('sm_')
    return dict(CHANNELS=geometry.group_channels, OUTPUTS=geometry.outputs, GROUPS=geometry.groups,
                **axes(geometry, 'kernel', 'stride', 'padding', 'dilation'), PAD_VALUE=geometry.pad_value,
                TRANSPOSED=geometry.transposed, ONE_TERM=name == 'int8' and geometry.group_channels == 1 < geometry.groups,
                REPLICAS=replicas, ACT=act, ELEMENT=element, **tiles), dict(options, enable_fp_fusion=False)


def split(tiles: dict[str, int]) -> tuple[dict, dict]:
    """A row of tables.toml as constants of a kernel, which are upper case, and options of the compiler."""
    return ({name: value for name, value in tiles.items() if name.isupper()},
            {name: value for name, value in tiles.items() if not name.isupper()})


def finishing(arch: str, images: Sequence[int], outputs: int, channels: int, out_groups: int, act: str, dtype: torch.dtype,
              window: Pool2dGeometry) -> Launch:
    """`finish_apart` of sums: how many images, height and width."""
    batch, height, width = images
    out_height, out_width = window.shape((1, 1, height, width))[2:]
    pixels = batch * out_height * out_width
    limit(max(pixels, batch * height * width))
    tiles, options = split(tile('finish', arch, outputs))
    programs = -(-pixels // tiles['BLOCK_M']) * -(-out_groups * words_per_group(channels, out_groups) * 32 // tiles['BLOCK_N'])
    numbers = dict(pixels=pixels, height=height, width=width, out_height=out_height, out_width=out_width, OUTPUTS=outputs,
                   REPLICAS=channels // outputs, OUT_GROUPS=out_groups, **axes(window, 'window', 'stride', 'padding'), ACT=act,
                   ELEMENT=ELEMENTS[dtype])
    return Launch(epilogues.finish_apart, programs, numbers | tiles, **options, enable_fp_fusion=False)


def axes(geometry: Conv2dGeometry | Pool2dGeometry, *fields: str) -> dict[str, int]:
    """Pairs of a geometry by the names that kernels have for both numbers."""
    return {f'{field.upper()}_{axis}': getattr(geometry, field)[place]
            for field in fields for place, axis in enumerate('HW')}


def bits(value: Any) -> Any:
    """For the interpreter, which has no bfloat16: see epilogue.py."""
    return value.view(torch.int16) if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
