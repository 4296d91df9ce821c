"""The CPU backend of machines without a compiler: numba_kernels.py, fed with torch's tensors. Needs `pip install numba`.

Kernels run without Python's lock, on as many threads as torch has: threads of its own, because numba's either cannot be forked
or cannot be entered twice.
"""

import importlib.util
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from .dispatch import Backend
from .epilogue import ACTS
from .geometry import Conv2dGeometry, linear_geometry
from .layout import pack_bits, words_per_group

SHARE = 64  # pixels that are worth a thread


class Numba(Backend):
    """Packing, convolution, linear layers and the fused blocks on CPU tensors."""

    name = 'numba'

    def available(self):
        if sys.byteorder != 'little':
            return False, 'numba packs bits on little-endian machines only'
        if importlib.util.find_spec('numba') is None:
            return False, "numba is not installed: pip install 'bnn_plugins[numba]', or pip install numba"
        from . import numba_kernels
        self.kernels = numba_kernels
        return True, ''

    def supports(self, op, **call):
        able, reason = super().supports(op, **call)
        device = next(value.device for value in call.values() if isinstance(value, Tensor))
        if able and device.type != 'cpu':
            return False, f'numba runs on the CPU, got tensors on {device}'
        return able, reason

    def pack_activations(self, x, threshold, groups):
        return self._pack(x.permute(0, 2, 3, 1), threshold, groups)

    def pack_features(self, x, threshold):
        return self._pack(x, threshold, 1)

    def binary_linear(self, x_words, w_words, features):
        images, kernel = x_words.reshape(-1, 1, 1, x_words.shape[-1]), w_words[:, None, None]
        y = self.binary_conv2d(images, kernel, linear_geometry(features, len(w_words)))
        return y.view(*x_words.shape[:-1], len(w_words))

    def binary_conv2d(self, x_words, w_words, geometry):
        y = torch.empty(geometry.shape(x_words.shape), dtype=torch.int32, memory_format=torch.channels_last)
        _share(self.kernels.convolve, self._conv(x_words, w_words, geometry), _pixels(y))
        return y

    def binary_conv2d_sign(self, x_words, w_words, geometry, threshold, flip, out_groups):
        batch, _, *image = geometry.shape(x_words.shape)
        words = out_groups * words_per_group(len(threshold), out_groups)
        y = torch.empty((batch, *image, words), dtype=torch.int32)
        flip = torch.zeros(len(threshold), dtype=torch.bool) if flip is None else flip
        _share(self.kernels.convolve_sign, self._conv(x_words, w_words, geometry), _array(threshold), _array(flip), out_groups,
               _rows(y))
        return y

    def binary_block2d(self, x_words, w_words, geometry, epilogue, shortcut, dtype, pack, keep, out=None):
        batch, _, *image = geometry.shape(x_words.shape)
        # The loop works in place, on one float32 tensor that holds the shortcut before and the stream after it.
        stream = out
        if stream is None or stream.dtype != torch.float32:
            stream = torch.empty((batch, epilogue.width, *image), memory_format=torch.channels_last)
        if shortcut is not None and shortcut is not stream:
            stream.copy_(shortcut.detach())
        zero = torch.zeros(epilogue.width)
        shifts = (_array(zero if vector is None else vector) for vector in (epilogue.gamma, epilogue.slope, epilogue.zeta))
        _share(self.kernels.convolve_block, self._conv(x_words, w_words, geometry), _array(epilogue.scale),
               _array(epilogue.bias), shortcut is not None, ACTS.index(epilogue.act), *shifts, _pixels(stream))
        stream = stream.to(dtype)
        words = self.pack_activations(stream, epilogue.threshold, epilogue.out_groups) if pack else x_words.new_empty(0)
        if out is not None:
            return words, out if stream is out else out.copy_(stream)
        return words, stream if keep else stream.new_empty(0)

    def _pack(self, x: Tensor, threshold: Tensor | None, groups: int) -> Tensor:
        """Float [..., C] -> int32 [..., groups * words]."""
        threshold = torch.zeros(1) if threshold is None else threshold.detach().reshape(-1)
        wide = torch.float64 if torch.float64 in (x.dtype, threshold.dtype) else torch.float32  # holds both exactly
        y = torch.empty((*x.shape[:-1], groups * words_per_group(x.shape[-1], groups)), dtype=torch.int32)
        x = x.detach().to(wide).contiguous()
        threshold = threshold.to(wide).expand(x.shape[-1])
        _share(self.kernels.pack, x.view(-1, x.shape[-1]).numpy(), _array(threshold), groups, _rows(y))
        return y

    def _conv(self, x_words, w_words, geometry: Conv2dGeometry) -> tuple:
        """What the loops of a convolution need: sizes, words, weights and the sums of the taps."""
        x = _padded(x_words, geometry)
        weights = w_words.view(torch.uint32).reshape(geometry.groups, geometry.group_outputs, -1)
        weights = weights.transpose(1, 2).contiguous().numpy()
        taps = self.kernels.tap_sums(weights, geometry.words, geometry.group_channels)
        return geometry, tuple(x.shape[1:3]), geometry.size(x_words.shape[1:3]), x.numpy().reshape(-1), weights, taps


def _padded(x_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
    """The image with its padding, uint32: one bits for +1, zero bits for -1 and for 0, which the kernels take out again."""
    vertical, horizontal = geometry.padding
    batch, height, width, words = x_words.shape
    if not any(geometry.padding):
        return x_words.contiguous().view(torch.uint32)
    outside = pack_bits(torch.full((geometry.channels,), geometry.pad_value == 1), geometry.groups)
    padded = outside.expand(batch, height + 2 * vertical, width + 2 * horizontal, words).contiguous()
    padded[:, vertical:vertical + height, horizontal:horizontal + width] = x_words
    return padded.view(torch.uint32)


def _pixels(y: Tensor):
    """[N, C, H, W] in channels-last memory -> its array [pixels, C]."""
    return y.detach().permute(0, 2, 3, 1).view(-1, y.shape[1]).numpy()


def _rows(words: Tensor):
    return words.view(-1, words.shape[-1]).numpy().view('uint32')


def _array(vector: Tensor):
    return vector.detach().contiguous().numpy()


def _share(kernel, *arguments) -> None:
    """Runs `kernel(first, last, *arguments)` over the rows of the last argument, in torch's number of threads."""
    rows = len(arguments[-1])
    threads = min(torch.get_num_threads(), rows // SHARE)
    if threads < 2:
        kernel(0, rows, *arguments)
        return
    cuts = [rows * i // threads for i in range(threads + 1)]
    list(_pool(threads).map(lambda first, last: kernel(first, last, *arguments), cuts[:-1], cuts[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, 'bnn_kernels')


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork
