"""From shapes to a launch. What a kernel is compiled for is decided once per layer and cached: a call reads metadata,
allocates its results and launches, so that it can be captured in a CUDA graph."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ..geometry import Conv2dGeometry, Pair
from . import epilogue, pack
from .device import architecture, on
from .tables import tile
from .versions import INTERPRETED

PIXELS_LIMIT = 2**31  # pixels are counted in int32
ELEMENTS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.int16 if INTERPRETED else tl.bfloat16,  # see epilogue.py
}


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


def convolve(kernel: Callable, name: str, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, results: Results,
             channels: int, out_groups: int = 1, act: str = 'identity', dtype: torch.dtype = torch.float32) -> None:
    """Runs `kernel`, and the epilogue apart where words cross its tiles.

    Args:
        kernel, name: the kernel and its section in tables.toml. Words come as int8 where `name` is 'bitplane'.
        channels: P, output channels behind the epilogue.
    """
    batch, height, width, _ = x_words.shape
    size = geometry.size((height, width))
    pixels = batch * size[0] * size[1]
    if pixels == 0:
        return
    replicas = channels // geometry.outputs
    direct = results
    if results.words is not None and not words_fit(geometry, replicas, out_groups):
        direct = Results(sums=x_words.new_empty(pixels, geometry.outputs))
    with on(x_words.device):
        arch = architecture(x_words.device)
        constants = _constants(name, arch, geometry, replicas, act, ELEMENTS[dtype])
        tiles = geometry.groups * -(-geometry.group_outputs // constants['BLOCK_N'])
        view = torch.int8 if name == 'bitplane' else torch.int32
        programs = tiles * -(-pixels // constants['BLOCK_M'])
        kernel[(programs,)](x_words.contiguous().view(view), w_words.contiguous().view(view), **_pointers(direct),
                            pixels=pixels, height=height, width=width, out_height=size[0], out_width=size[1], **constants)
        if direct is not results:
            _finish_apart(arch, direct.sums, results, pixels, geometry.outputs, replicas, out_groups, act, dtype)


def count_pixels(x_words: Tensor, size: Pair) -> None:
    """Raises ValueError where the pixels of the input, or of the output, are too many to be counted in int32."""
    limit(max(x_words.shape[0] * size[0] * size[1], x_words.shape[:3].numel()))


def words_fit(geometry: Conv2dGeometry, replicas: int, out_groups: int) -> bool:
    """Whether every word of the result lies in one tile of a kernel: no word crosses a group or a replica."""
    whole = (geometry.groups == 1 or geometry.group_outputs % 32 == 0) and (replicas == 1 or geometry.outputs % 32 == 0)
    return whole and (out_groups == 1 or geometry.outputs * replicas // out_groups % 32 == 0)


def pack_signs(x: Tensor, threshold: Tensor | None, groups: int) -> Tensor:
    """Float [images, C, pixels], of any strides, to int32 [images, pixels, groups * words]."""
    images, channels, pixels = x.shape
    limit(images * pixels)
    words = groups * -(-channels // groups // 32)
    result = torch.empty((images, pixels, words), dtype=torch.int32, device=x.device)
    if result.numel() == 0:
        return result
    threshold = None if threshold is None else bits(threshold.reshape(-1).contiguous())
    with on(x.device):
        tiles = tile('pack', architecture(x.device), words * 32)
        programs = images * -(-pixels // tiles['BLOCK_M']) * -(-words * 32 // tiles['BLOCK_N'])
        pack.pack_signs[(programs,)](
            bits(x.detach()), threshold, result, pixels, x.stride(0), x.stride(2), x.stride(1), CHANNELS=channels,
            GROUPS=groups, THRESHOLDS=0 if threshold is None else threshold.numel(), **tiles)
    return result


def limit(pixels: int) -> None:
    if pixels >= PIXELS_LIMIT:
        raise ValueError(f'one call reads or writes {pixels} pixels, the limit is 2**31 - 1: split the batch.')


@cache
def _constants(name: str, arch: str, geometry: Conv2dGeometry, replicas: int, act: str, element) -> dict:
    tiles = tile(name, arch, geometry.group_outputs)
    if name == 'bitplane':
        tiles = dict(tiles, ASM=arch.startswith('sm_'))
    pairs = {f'{field.upper()}_{axis}': getattr(geometry, field)[place]
             for field in ('kernel', 'stride', 'padding', 'dilation') for place, axis in enumerate('HW')}
    return dict(CHANNELS=geometry.group_channels, OUTPUTS=geometry.outputs, GROUPS=geometry.groups, **pairs,
                PAD_VALUE=geometry.pad_value, TRANSPOSED=geometry.transposed, REPLICAS=replicas, ACT=act, ELEMENT=element,
                enable_fp_fusion=False, **tiles)


def _finish_apart(arch, sums, results, pixels, outputs, replicas, out_groups, act, dtype) -> None:
    tiles = tile('finish', arch, outputs)
    bits = results.words.shape[-1] * 32
    programs = -(-pixels // tiles['BLOCK_M']) * -(-bits // tiles['BLOCK_N'])
    epilogue.finish_apart[(programs,)](**_pointers(results._replace(sums=sums)), pixels=pixels, OUTPUTS=outputs,
                                       REPLICAS=replicas, OUT_GROUPS=out_groups, ACT=act, ELEMENT=ELEMENTS[dtype],
                                       enable_fp_fusion=False, **tiles)


def _pointers(results: Results) -> dict[str, Tensor | None]:
    return {name: None if tensor is None else bits(tensor) for name, tensor in results._asdict().items()}


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16) if INTERPRETED and tensor.dtype == torch.bfloat16 else tensor
