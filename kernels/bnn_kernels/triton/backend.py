"""The operators of the Triton backends: what is allocated for results; `launch` does the rest."""

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from ..dispatch import Backend
from ..epilogue import Epilogue
from ..geometry import Conv2dGeometry, Pool2dGeometry, Stem2dGeometry, linear_geometry
from ..layout import words_per_group
from .device import architecture, capability, holds, is_there, on
from .downsample import downsample
from .int8 import Int8Operators
from .launch import (
    ALIGNMENT,
    ELEMENTS,
    Launch,
    Planned,
    Results,
    aligned,
    block_call,
    convolution,
    extent,
    finishing,
    limit,
    operator,
    packing,
    split,
    words_shape,
)
from .sequence import SequenceOperators
from .tables import tile
from .versions import INTERPRETED

INT8_CAPABILITY = 8, 0  # of Triton's int8 products
NO_STATISTICS = ('the Triton backends run an LSTM tile by tile and leave the statistics over all units of a gate (eps) to '
                 'other backends')


class TritonBackend(Planned, Int8Operators, SequenceOperators, Backend):
    """Base of the backends: a subclass adds `name`, `kernel` and the least CUDA compute capability it runs on."""

    kernel: Callable
    least_capability: tuple[int, int]

    def available(self) -> tuple[bool, str]:
        if INTERPRETED or is_there():
            return True, ''
        return False, (f'{self.name} needs an NVIDIA or AMD GPU and torch sees none; TRITON_INTERPRET=1 in the environment '
                       f'interprets it on the CPU, for tests')

    def supports(self, op: str, **call) -> tuple[bool, str]:
        able, reason = super().supports(op, **call)
        if able and op == 'binary_lstm' and call['recurrence'].eps is not None:
            return False, NO_STATISTICS
        if not able:
            return able, reason
        device = next(call[name] for name in ('x', 'x_words', 'q_words') if name in call).device
        return self.runs_on(device, INT8_CAPABILITY if op in ('int8_conv2d', 'int8_pooled2d') else (0, 0))

    def runs_on(self, device: torch.device, least: tuple[int, int] = (0, 0)) -> tuple[bool, str]:
        """(True, '') or (False, reason) for tensors on `device`, and an operator that needs a capability of `least`."""
        if INTERPRETED:
            reason = f'{self.name} is interpreted (TRITON_INTERPRET=1) and takes CPU tensors, got {device}'
            return (True, '') if device.type == 'cpu' else (False, reason)
        if not holds(device):
            return False, f'{self.name} takes CUDA tensors, got {device}'
        have, least = capability(device), max(least, self.least_capability)
        if have is not None and have < least:
            least, have = ('.'.join(map(str, numbers)) for numbers in (least, have))
            return False, f'{self.name} needs compute capability {least}, {device} has {have}'
        return True, ''

    @operator
    def pack_activations(self, x: Tensor, threshold: Tensor | None, groups: int) -> Callable[..., Tensor]:
        height, width = x.shape[2:]
        pack = packing(x.flatten(2), threshold, groups)
        return lambda x, threshold, groups: pack(x.flatten(2), threshold).unflatten(1, (height, width))

    @operator
    def pack_features(self, x: Tensor, threshold: Tensor | None) -> Callable[..., Tensor]:
        rows, shape = (x.shape[:-1].numel(), x.shape[-1]), (*x.shape[:-1], words_per_group(x.shape[-1]))
        pack = packing(x.reshape(rows).t()[None], threshold, 1)
        return lambda x, threshold: pack(x.reshape(rows).t()[None], threshold).view(shape)

    @operator
    def binary_conv2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Callable[..., Tensor]:
        sizes = extent(geometry.shape(x_words.shape), torch.channels_last)
        run = self._convolution(x_words, geometry, geometry.outputs)

        def call(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
            sums = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, Results(sums=sums))
            return sums
        return call

    binary_conv_transpose2d = binary_conv2d

    @operator
    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Callable[..., Tensor]:
        *lead, words = x_words.shape
        image, outputs = (1, prod(lead), 1, words), len(w_words)
        sizes = extent((*lead, outputs))
        run = self._convolution(x_words.reshape(image), linear_geometry(features, outputs), outputs)

        def call(x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
            sums = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, Results(sums=sums))
            return sums
        return call

    @operator
    def binary_conv2d_sign(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor,
                           flip: Tensor | None, out_groups: int) -> Callable[..., Tensor]:
        sizes = extent(words_shape(x_words, geometry, threshold.numel(), out_groups))
        run = self._convolution(x_words, geometry, threshold.numel(), out_groups)

        def call(x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor, flip: Tensor | None,
                 out_groups: int) -> Tensor:
            words = x_words.new_empty_strided(*sizes)
            run(x_words, w_words, Results(words=words, threshold=aligned(threshold),
                                          flip=None if flip is None else aligned(flip).view(torch.uint8)))
            return words
        return call

    @operator
    def binary_block2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue,
                       shortcut: Tensor | None, dtype: torch.dtype, pack: bool, keep: bool,
                       out: Tensor | None = None) -> Callable[..., tuple[Tensor, Tensor]]:
        run = self._convolution(x_words, geometry, epilogue.width, epilogue.out_groups, epilogue.act, dtype)

        def fill(x_words: Tensor, w_words: Tensor, words: Tensor | None, out: Tensor | None, shortcut: Tensor | None,
                 *vectors: Tensor | None) -> None:
            run(x_words, w_words, Results(None, words, out, shortcut, *vectors))
        return block_call(x_words, geometry, epilogue, dtype, pack, keep, fill)

    @operator
    def downsample2d(self, x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Callable[..., Tensor]:
        batch, channels, height, width = x.shape
        outputs, device, dtype = len(weight), x.device, x.dtype
        size = -(-height // pool), -(-width // pool)
        pixels = batch * size[0] * size[1]
        limit(pixels)
        tiles, options = split(tile('downsample', architecture(device), outputs))
        numbers = dict(pixels=pixels, height=height, width=width, out_height=size[0], out_width=size[1],
                       image_stride=x.stride(0), row_stride=x.stride(2), column_stride=x.stride(3), channel_stride=x.stride(1),
                       CHANNELS=channels, OUTPUTS=outputs, POOL=min(pool, max(height, width)), ELEMENT=ELEMENTS[dtype])
        programs = -(-pixels // tiles['BLOCK_M']) * -(-outputs // tiles['BLOCK_N'])
        sizes = extent((batch, outputs, *size), torch.channels_last)
        launches = [Launch(downsample, programs, numbers | tiles, **options) for _ in range(2)]  # `x` may begin anywhere

        def call(x: Tensor, weight: Tensor, bias: Tensor, pool: int) -> Tensor:
            out = x.new_empty_strided(*sizes)
            if pixels:
                with on(device):
                    launches[x.data_ptr() % ALIGNMENT == 0](x.detach(), aligned(weight), aligned(bias), out)
            return out
        return call

    @operator
    def stem2d(self, x: Tensor, weight: Tensor, geometry: Stem2dGeometry, epilogue: Epilogue, dtype: torch.dtype,
               pack: bool) -> Callable[..., tuple[Tensor, Tensor]]:
        (height, width), size = geometry.sizes(x.shape[2:])
        batch, channels, groups = len(x), epilogue.width, epilogue.out_groups
        window = Pool2dGeometry('max', geometry.window, geometry.window_stride, geometry.window_padding)
        launch = finishing(architecture(x.device), (batch, height, width), geometry.outputs, channels, groups, epilogue.act,
                           dtype, window)
        words = groups * words_per_group(channels, groups)
        words_extent = extent((batch, *size, words) if pack else (0,))
        stream_extent = extent((batch, channels, *size), torch.channels_last)

        def call(x: Tensor, weight: Tensor, geometry: Stem2dGeometry, epilogue: Epilogue, dtype: torch.dtype,
                 pack: bool) -> tuple[Tensor, Tensor]:
            words = x.new_empty_strided(*words_extent, dtype=torch.int32)
            stream = x.new_empty_strided(*stream_extent, dtype=dtype)
            if batch:
                with torch.autocast(x.device.type, enabled=False):  # channels-last in, so that sums come so
                    image = x.detach().to(torch.float32, memory_format=torch.channels_last)
                    sums = F.conv2d(image, weight.detach(), None, geometry.stride, geometry.padding)
                scale, bias, _, gamma, slope, zeta, threshold, _ = epilogue
                with on(x.device):
                    launch(None, None, aligned(sums, torch.channels_last), words if pack else None, stream, None,
                           *map(aligned, (scale, bias, gamma, slope, zeta, threshold)), None)
            return words, stream
        return call

    def _convolution(self, x_words: Tensor, *arguments) -> Callable[[Tensor, Tensor, Results], None]:
        """What fills the results of convolutions of words like `x_words`."""
        name = self.name.removeprefix('triton-')
        run = convolution(type(self).kernel, name, x_words.shape[:3], x_words.device, *arguments)
        view = torch.int8 if name == 'bitplane' else torch.int32

        def call(x_words: Tensor, w_words: Tensor, results: Results) -> None:
            run((aligned(x_words).view(view), aligned(w_words).view(view)), results)
        return call
