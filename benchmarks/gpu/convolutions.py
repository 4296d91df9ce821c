"""Every binary convolution of the networks in `layers`, packed, against cuDNN on 16-bit floats in channels-last memory."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import layout

from .layers import Convolution, networks
from .measure import Budget, time_of

IMAGES, BATCHES = (224, 640, 800), (128, 32, 8, 1)
FIRST = ((224, 128), (640, 8), (800, 1))  # image and batch that are measured before all others, with every method
HALF = {'fp16': torch.float16, 'bf16': torch.bfloat16}
COLUMNS = ('image', 'batch', 'networks', 'channels', 'outputs', 'kernel', 'stride', 'size', 'method', 'microseconds', 'low',
           'high', 'operations', 'bytes', 'note')


def plan(images=IMAGES, batches=BATCHES, first=FIRST) -> Iterator[tuple[int, int, Convolution, dict[str, int], bool]]:
    """Image, batch, convolution, how often each network has it, whether all methods are wanted; what matters most first."""
    settings = [*first, *((image, batch) for image in images for batch in batches if (image, batch) not in first)]
    for names in (('ResNet-18', 'ResNet-34'), ('ReActNet-A', 'ResNet-50')):
        for image, batch in settings:
            if image in images and batch in batches:
                found = {name: layers for name, layers in networks(image).items() if name in names}
                for layer in dict.fromkeys(layer for layers in found.values() for layer in layers):
                    counts = {name: layers.count(layer) for name, layers in found.items() if layer in layers}
                    yield image, batch, layer, counts, (image, batch) in first


def measure(settings, device: torch.device, backends: tuple[str, ...], budget: Budget, add) -> None:
    """One row per convolution and method until the budget is spent; a method that fails leaves its reason."""
    for image, batch, layer, counts, all_methods in settings:
        where = dict(image=image, batch=batch, networks=' '.join(f'{name}:{count}' for name, count in counts.items()),
                     **layer._asdict())
        if budget.left < 0:
            add(**dict.fromkeys(COLUMNS, '') | where | dict(note='not measured: out of time'))
            continue
        for method, (call, sizes) in methods(layer, batch, device, backends, all_methods).items():
            row = dict.fromkeys(COLUMNS, '') | where | dict(method=method, operations=layer.operations(batch),
                                                            bytes=layer.bytes(batch, *sizes))
            try:
                time = time_of(call, device)
                row |= dict(microseconds=time.median, low=time.low, high=time.high)
            except Exception as error:  # no memory, no backend for this call, a compiler that fails: the others go on
                row['note'] = next(iter(str(error).splitlines()), type(error).__name__)
            add(**row)


def methods(layer: Convolution, batch: int, device: torch.device, backends: tuple[str, ...],
            all_methods: bool) -> dict[str, tuple[Callable, tuple[int, ...]]]:
    """Calls, and the bits per input, weight, output and shortcut element that each has to move.

    'sign' has words in and out; 'block' also a float16 shortcut in and out, with affine and RPReLU between.
    """
    words = torch.randint(-2**31, 2**31, (batch, layer.size, layer.size, -(-layer.channels // 32)), device=device,
                          dtype=torch.int32)
    if layer.channels % 32:
        raise ValueError(f'{layer} does not fill its words: the random bits would be wrong ones.')
    weight = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel, device=device)
    call = dict(x_words=words, w_words=layout.pack_weight(weight), channels=layer.channels, stride=layer.stride,
                padding=layer.kernel // 2)
    vector = torch.rand(6, layer.outputs, device=device)
    shape = batch, layer.outputs, layer.out_size, layer.out_size
    shortcut = torch.zeros(shape, dtype=torch.float16, device=device).contiguous(memory_format=torch.channels_last)
    found = {}
    torch.compiler.reset()  # else it stops compiling after some layers
    for backend in backends[:None if all_methods else 1]:
        sign = partial(bk.binary_conv2d_sign, **call, threshold=torch.zeros_like(vector[0], dtype=torch.int32))
        block = partial(bk.binary_block2d_, shortcut, **call,
                        epilogue=bk.Epilogue(vector[0], vector[1], 'prelu', vector[2], vector[3], vector[4], vector[5]))
        found[f'{backend} sign'] = partial(_with, backend, sign), (1, 1, 1)
        found[f'{backend} block'] = partial(_with, backend, block), (1, 1, 1, 32)
    for name, dtype in HALF.items():
        image = torch.randn(batch, layer.channels, layer.size, layer.size, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last)
        real = weight.to(dtype, memory_format=torch.channels_last)
        conv = partial(F.conv2d, image, real, stride=layer.stride, padding=layer.kernel // 2)
        found[f'cudnn {name}'] = conv, (16, 16, 16)
        if all_methods:
            fused = torch.compile(partial(_float_block, stride=layer.stride, padding=layer.kernel // 2), dynamic=False,
                                  backend='inductor' if device.type == 'cuda' else 'eager')
            arguments = image, real, *(part.to(dtype).view(-1, 1, 1) for part in vector[:5]), shortcut.to(dtype)
            found[f'torch.compile {name} block'] = partial(fused, *arguments), (16, 16, 16, 16)
    if layer.kernel == layer.stride == 1 and all_methods:  # what torch has of int8 convolutions on a GPU
        rows = torch.randint(-127, 128, (batch * layer.size**2, layer.channels), device=device, dtype=torch.int8)
        columns = weight.flatten(1).to(torch.int8).t()
        found['torch int8'] = partial(torch._int_mm, rows, columns), (8, 8, 32)
    return found


def _with(backend: str, call: Callable) -> None:
    with bk.set_backend(backend):
        call()


def _float_block(image: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, gamma: Tensor, slope: Tensor, zeta: Tensor,
                 shortcut: Tensor, stride: int, padding: int) -> Tensor:
    """What 'block' does, on floats."""
    v = F.conv2d(image, weight, stride=stride, padding=padding) * scale + bias + shortcut - gamma
    return torch.where(v > 0, v, slope * v) + zeta
