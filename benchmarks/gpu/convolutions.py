"""Every binary convolution of the networks in `layers`, packed, against cuDNN on 16-bit floats in channels-last memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

import bnn_kernels as bk
from bnn_kernels import layout

from .layers import Convolution, networks
from .measure import cold_time_of, time_of
from .supervise import Rows

IMAGES, BATCHES = (224, 640, 800), (128, 32, 8, 1)
FIRST = ((224, 128), (640, 8), (800, 1))  # image and batch that are measured before all others
RESNET18 = 7  # distinct convolutions
PLAIN = 'cudnn fp16', 'cudnn bf16', 'torch int8'
BLOCKS = 'torch.compile fp16 block', 'torch.compile bf16 block'


def plan(images=IMAGES, batches=BATCHES, first=FIRST) -> Iterator[tuple[int, int, Convolution, dict[str, int]]]:
    """Image, batch, convolution, how often each network has it; what matters most first."""
    settings = [*first, *((image, batch) for image in images for batch in batches if (image, batch) not in first)]
    for names in (('ResNet-18', 'ResNet-34'), ('ReActNet-A', 'ResNet-50')):
        for image, batch in settings:
            if image in images and batch in batches:
                found = {name: layers for name, layers in networks(image).items() if name in names}
                for layer in dict.fromkeys(layer for layers in found.values() for layer in layers):
                    counts = {name: layers.count(layer) for name, layers in found.items() if layer in layers}
                    yield image, batch, layer, counts


def rows(device: torch.device, methods: Sequence[str], settings: int | None, dry: bool = False) -> Rows:
    """One per convolution and method, of the first `settings` convolutions; of the others where that is negative."""
    every = list(plan())
    for image, batch, layer, counts in every[:settings] if settings is None or settings >= 0 else every[-settings:]:
        if dry:
            layer, batch = layer._replace(size=8), 1
        for method in methods:
            if method != 'torch int8' or layer.kernel == layer.stride == 1:
                of = dict(image=image, batch=batch, networks=' '.join(f'{name}:{count}' for name, count in counts.items()),
                          **layer._asdict(), method=method)
                yield of, partial(measure, method, layer, batch, device)


def measure(method: str, layer: Convolution, batch: int, device: torch.device) -> dict:
    call, sizes = call_of(method, layer, batch, device)
    warm, cold = time_of(call, device), cold_time_of(call, device)
    return dict(microseconds=warm.median, low=warm.low, high=warm.high, cold=cold.median, operations=layer.operations(batch),
                bytes=layer.bytes(batch, *sizes))


def call_of(method: str, layer: Convolution, batch: int, device: torch.device) -> tuple[Callable, tuple[int, ...]]:
    """What is timed, and the bits per input, weight, output and shortcut element that it has to move.

    'sign' has words in and out; 'block' also a float16 shortcut in and out, with affine and RPReLU between. A backend's name
    may have ' mma' behind it, which the environment of the process sees to (BNN_KERNELS_WGMMA).
    """
    weight = torch.randn(layer.outputs, layer.channels, layer.kernel, layer.kernel, device=device)
    vector = torch.rand(6, layer.outputs, device=device)
    shape = batch, layer.outputs, layer.out_size, layer.out_size
    steps = dict(stride=layer.stride, padding=layer.kernel // 2)
    if method == 'torch int8':  # what torch has of int8 convolutions on a GPU
        lines = torch.randint(-127, 128, (batch * layer.size**2, layer.channels), device=device, dtype=torch.int8)
        return partial(torch._int_mm, lines, weight.flatten(1).to(torch.int8).t()), (8, 8, 32)
    if method in (*PLAIN, *BLOCKS):
        dtype = torch.float16 if 'fp16' in method else torch.bfloat16
        image = torch.randn(batch, layer.channels, layer.size, layer.size, device=device, dtype=dtype).contiguous(
            memory_format=torch.channels_last)
        weight = weight.to(dtype, memory_format=torch.channels_last)
        if method in PLAIN:
            return partial(F.conv2d, image, weight, **steps), (16, 16, 16)
        torch.compiler.reset()  # else it stops compiling after some layers
        fused = torch.compile(partial(_float_block, **steps), dynamic=False,
                              backend='inductor' if device.type == 'cuda' else 'eager')
        shortcut = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
        return partial(fused, image, weight, *(part.to(dtype).view(-1, 1, 1) for part in vector[:5]), shortcut), (16,) * 4
    backend, _, what = method.replace(' mma', '').partition(' ')
    if layer.channels % 32:
        raise ValueError(f'{layer} does not fill its words: the random bits would be wrong ones.')
    words = torch.randint(-2**31, 2**31, (batch, layer.size, layer.size, layer.channels // 32), device=device,
                          dtype=torch.int32)
    call = dict(x_words=words, w_words=layout.pack_weight(weight), channels=layer.channels, **steps)
    if what == 'sign':
        sign = partial(bk.binary_conv2d_sign, **call, threshold=torch.zeros_like(vector[0], dtype=torch.int32))
        return partial(_with, backend, sign), (1, 1, 1)
    shortcut = torch.zeros(shape, dtype=torch.float16, device=device).contiguous(memory_format=torch.channels_last)
    epilogue = bk.Epilogue(vector[0], vector[1], 'prelu', vector[2], vector[3], vector[4], vector[5])
    return partial(_with, backend, partial(bk.binary_block2d_, shortcut, **call, epilogue=epilogue)), (1, 1, 1, 32)


def _with(backend: str, call: Callable) -> None:
    with bk.set_backend(backend):
        call()


def _float_block(image: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, gamma: Tensor, slope: Tensor, zeta: Tensor,
                 shortcut: Tensor, stride: int, padding: int) -> Tensor:
    """What 'block' does, on floats."""
    v = F.conv2d(image, weight, stride=stride, padding=padding) * scale + bias + shortcut - gamma
    return torch.where(v > 0, v, slope * v) + zeta
