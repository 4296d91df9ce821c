"""Whole networks on a GPU: the body of ResNet-18 in bits against floats, and a step of its training."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolutions import FIRST
from .measure import time_of
from .supervise import Rows

BODIES = 'float16', 'float16 compiled', 'packed', 'fused float16', 'fused bfloat16'
TRAINING = 'float32', 'bfloat16 autocast', 'binary, bfloat16 autocast'
WIDTHS = (64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)


class Block(nn.Module):
    """Two convolutions, each with its own shortcut as in Bi-Real Net; a pooled, real-valued one where it is needed."""

    def __init__(self, channels: int, outputs: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.act1, self.act2 = nn.PReLU(outputs), nn.PReLU(outputs)
        self.downsample = None
        if stride > 1 or channels != outputs:
            self.downsample = nn.Sequential(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                                            nn.Conv2d(channels, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.act1(self.norm1(self.conv1(x)) + shortcut)
        return self.act2(self.norm2(self.conv2(x)) + x)


def body() -> nn.Sequential:
    """The 16 convolutions of ResNet-18 and its downsamples."""
    return nn.Sequential(*[block for channels, outputs, stride in WIDTHS
                           for block in (Block(channels, outputs, stride), Block(outputs, outputs, 1))])


def rows(device: torch.device, dry: bool = False) -> Rows:
    for image, batch in FIRST[:1] if dry else FIRST:
        size = 8 if dry else image // 4
        for form in BODIES:
            yield dict(network='ResNet-18 body', image=image, batch=batch, form=form), partial(
                measure_body, form, 1 if dry else batch, size, device)


def measure_body(form: str, batch: int, size: int, device: torch.device) -> dict:
    """A forward pass from the stem's output, replayed in a CUDA graph."""
    import bnn_plugins
    torch.manual_seed(0)
    model, floats = body().eval(), form.startswith('float')
    if not floats:
        bnn_plugins.binarize_(model, bnn_plugins.BNNConfig(method='reactnet'), inputs=torch.zeros(1, 64, 16, 16))
        bnn_plugins.pack_(model)
    model.to(device, torch.float16 if floats else None, memory_format=torch.channels_last).requires_grad_(False)
    if form.startswith('fused'):
        bnn_plugins.fuse_(model, stream_dtype=getattr(torch, form.split()[1]))
    if 'compiled' in form:
        model = torch.compile(model, backend='inductor' if device.type == 'cuda' else 'eager')
    x = torch.randn(batch, 64, size, size, device=device, dtype=torch.float16 if floats else torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        return time_of(partial(model, x), device)._asdict()


def training(device: torch.device, dry: bool = False) -> Rows:
    for image, batch in ((32, 2),) if dry else ((224, 128),):
        for form in TRAINING:
            yield dict(network='ResNet-18 body', image=image, batch=batch, form=form), partial(
                measure_step, form, batch, image // 4, device)


def measure_step(form: str, batch: int, size: int, device: torch.device, steps: int = 10) -> dict:
    """Forward, backward and SGD, the median of some steps."""
    import bnn_plugins
    torch.manual_seed(0)
    model = body()
    if form.startswith('binary'):
        bnn_plugins.binarize_(model, bnn_plugins.BNNConfig(method='reactnet'), inputs=torch.zeros(1, 64, 16, 16))
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9)
    x = torch.randn(batch, 64, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled='bfloat16' in form):
            loss = F.mse_loss(model(x).float().mean((2, 3)), torch.ones(batch, 512, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return dict(microseconds=median(step, device, 2 if device.type == 'cpu' else steps))


def median(step: Callable[[], None], device: torch.device, steps: int) -> float:
    """Microseconds, with the device waited for."""
    return sorted(_waited(step, device, steps))[steps // 2]


def _waited(step: Callable[[], None], device: torch.device, steps: int) -> Iterator[float]:
    from time import perf_counter
    for place in range(steps + 3):
        start = perf_counter()
        step()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        if place > 2:
            yield round(1e6 * (perf_counter() - start), 1)
