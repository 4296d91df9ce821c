"""The operators of the Triton backends as methods: results are allocated here, `launch` does the rest."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..dispatch import Backend
from ..epilogue import Epilogue
from ..geometry import Conv2dGeometry, linear_geometry
from ..layout import words_per_group
from .device import capability, holds, is_there
from .launch import Results, convolve, count_pixels, pack_signs
from .sequence import SequenceOperators
from .versions import INTERPRETED

LEFT_TO_TORCH = {
    'downsample2d': 'it pools in one kernel bound by memory, and the 1x1 convolution is a real-valued matrix product, for '
                    'which it has cuBLAS or rocBLAS',
    'stem2d': 'a real-valued convolution is what it has cuDNN or MIOpen for',
}
NO_STATISTICS = ('the Triton backends run an LSTM tile by tile and leave the statistics over all units of a gate (eps) to '
                 'other backends')


class TritonBackend(SequenceOperators, Backend):
    """Base of the backends: a subclass adds `name`, `kernel` and the least CUDA compute capability it runs on."""

    kernel: Callable
    least_capability: tuple[int, int]

    def available(self) -> tuple[bool, str]:
        if INTERPRETED or is_there():
            return True, ''
        return False, (f'{self.name} needs an NVIDIA or AMD GPU and torch sees none; TRITON_INTERPRET=1 in the environment '
                       f'interprets it on the CPU, for tests')

    def supports(self, op: str, **call) -> tuple[bool, str]:
        if op in LEFT_TO_TORCH:
            return False, f'the Triton backends leave {op} to torch: {LEFT_TO_TORCH[op]}'
        able, reason = super().supports(op, **call)
        if able and op == 'binary_lstm' and call['recurrence'].eps is not None:
            return False, NO_STATISTICS
        if not able:
            return able, reason
        return self.runs_on(next(call[name] for name in ('x', 'x_words', 'q_words') if name in call).device)

    def runs_on(self, device: torch.device) -> tuple[bool, str]:
        """(True, '') or (False, reason) for tensors on `device`."""
        if INTERPRETED:
            reason = f'{self.name} is interpreted (TRITON_INTERPRET=1) and takes CPU tensors, got {device}'
            return (True, '') if device.type == 'cpu' else (False, reason)
        if not holds(device):
            return False, f'{self.name} takes CUDA tensors, got {device}'
        have = capability(device)
        if have is not None and have < self.least_capability:
            least, have = ('.'.join(map(str, numbers)) for numbers in (self.least_capability, have))
            return False, f'{self.name} needs compute capability {least}, {device} has {have}'
        return True, ''

    def pack_activations(self, x: Tensor, threshold: Tensor | None, groups: int) -> Tensor:
        height, width = x.shape[2:]
        return pack_signs(x.flatten(2), threshold, groups).unflatten(1, (height, width))

    def pack_features(self, x: Tensor, threshold: Tensor | None) -> Tensor:
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        return pack_signs(rows.t()[None], threshold, 1).view(*x.shape[:-1], -(-x.shape[-1] // 32))

    def binary_conv2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry) -> Tensor:
        sums = _image(x_words, geometry, geometry.outputs, torch.int32)
        self._convolve(x_words, w_words, geometry, Results(sums=sums), geometry.outputs)
        return sums

    binary_conv_transpose2d = binary_conv2d

    def binary_linear(self, x_words: Tensor, w_words: Tensor, features: int) -> Tensor:
        lead, words = x_words.shape[:-1], x_words.shape[-1]
        rows = x_words.reshape(1, lead.numel(), 1, words)
        sums = self.binary_conv2d(rows, w_words[:, None, None], linear_geometry(features, len(w_words)))
        return sums.permute(0, 2, 3, 1).view(*lead, len(w_words))  # [1, O, M, 1] in channels-last memory

    def binary_conv2d_sign(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, threshold: Tensor,
                           flip: Tensor | None, out_groups: int) -> Tensor:
        results = Results(words=_words(x_words, geometry, threshold.numel(), out_groups), threshold=threshold.contiguous(),
                          flip=None if flip is None else flip.contiguous().view(torch.uint8))
        self._convolve(x_words, w_words, geometry, results, threshold.numel(), out_groups)
        return results.words

    def binary_block2d(self, x_words: Tensor, w_words: Tensor, geometry: Conv2dGeometry, epilogue: Epilogue,
                       shortcut: Tensor | None, dtype: torch.dtype, pack: bool, keep: bool,
                       out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if keep and out is None:
            out = _image(x_words, geometry, epilogue.width, dtype)
        if shortcut is not None:
            shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        words = _words(x_words, geometry, epilogue.width, epilogue.out_groups) if pack else None
        self._convolve(x_words, w_words, geometry, Results(words=words, out=out, shortcut=shortcut, **epilogue.vectors()),
                       epilogue.width, epilogue.out_groups, epilogue.act, dtype)
        nothing = [x_words.new_empty(0, dtype=of) for of in (torch.int32, dtype)]
        return nothing[0] if words is None else words, nothing[1] if out is None else out

    def _convolve(self, *arguments) -> None:
        convolve(type(self).kernel, self.name.removeprefix('triton-'), *arguments)


def _image(x_words: Tensor, geometry: Conv2dGeometry, channels: int, dtype: torch.dtype) -> Tensor:
    size = geometry.size(x_words.shape[1:3])
    count_pixels(x_words, size)
    return torch.empty((x_words.shape[0], channels, *size), dtype=dtype, device=x_words.device,
                       memory_format=torch.channels_last)


def _words(x_words: Tensor, geometry: Conv2dGeometry, channels: int, groups: int) -> Tensor:
    size = geometry.size(x_words.shape[1:3])
    count_pixels(x_words, size)
    return x_words.new_empty(x_words.shape[0], *size, groups * words_per_group(channels, groups))
