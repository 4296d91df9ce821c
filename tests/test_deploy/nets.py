"""Layers and networks that the tests of this folder pack. Also imported by a fresh process, which builds them again."""

import torch
from torch import nn

from bnn_plugins import list_methods
from bnn_plugins.layers import (
    AdaptiveConv2d,
    BinaryAttention,
    BinaryConv1d,
    BinaryConv2d,
    BinaryConv3d,
    BinaryConvLSTM,
    BinaryConvTranspose2d,
    BinaryLinear,
    BinaryLSTM,
    RPReLU,
)

METHODS = [*list_methods(), *(dict(type='dorefa', w_bits=w, a_bits=a) for w, a in ((1, 1), (1, 2), (2, 2), (2, 4), (3, 1))),
           dict(type='binaryconnect', stochastic=True)]
SIGNED = [method for method in list_methods() if method not in ('binaryconnect', 'binarydm', 'dorefa')]


def is_signed(method):
    return method in SIGNED


def randomise_(model):
    """Thresholds, scales, biases, statistics and norm factors away from their first values; norm factors of both signs."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
                module.weight.data[:2] = torch.tensor([-1.5, 0.0])[:module.num_features]
    for name, parameter in model.named_parameters():
        if name.rpartition('.')[2] in ('shift', 'alpha', 'bias', 'gamma', 'zeta'):
            nn.init.normal_(parameter, std=0.4)
    return model


def special_(x, threshold=None, channel_dim=1):
    """Values that a sign could get wrong, spread over ``x``: zeros of both signs, denormals, the threshold and its neighbours.

    Those of the threshold keep their channel.
    """
    edge = torch.zeros_like(x)
    if threshold is not None:
        edge = edge + (threshold if channel_dim == -1 else threshold.view(-1, 1, 1)).to(x.dtype)
    tiny = torch.finfo(x.dtype).smallest_normal
    infinity = torch.tensor(float('inf'), dtype=x.dtype)
    values = [edge, edge.nextafter(infinity), edge.nextafter(-infinity)] if x.dtype != torch.float16 else [edge]
    for value in (*values, -0.0, 0.0, tiny / 4, -tiny / 4, 1e4, -1e4, 1.0, 0.5, 1 / 3):
        x = torch.where(torch.rand(x.shape) < 0.06, torch.as_tensor(value, dtype=x.dtype), x)
    return x


class Unit(nn.Module):
    """``act(norm(conv(x)) + shortcut)``."""

    def __init__(self, conv, act):
        super().__init__()
        self.conv, self.norm, self.act = conv, nn.BatchNorm2d(conv.out_channels), act

    def forward(self, x):
        out = self.norm(self.conv(x))
        return self.act(out + x if out.shape == x.shape else out)


class Net(nn.Module):
    """A small detector-like network with a float stem, binary body, shared binary head and float prediction layers."""

    def __init__(self, method='reactnet', pad_value=0, width=16, extra=False):
        super().__init__()
        kwargs = dict(method=method, pad_value=pad_value)
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width))
        self.body = nn.Sequential(
            Unit(BinaryConv2d(width, width, 3, 1, 1, bias=False, **kwargs), nn.PReLU(width)),
            Unit(BinaryConv2d(width, 2 * width, 3, 2, 1, groups=2, bias=False, **kwargs), RPReLU(2 * width)),
            Unit(BinaryConv2d(2 * width, 2 * width, 3, 1, 2, 2, **kwargs), nn.Hardtanh()),
            Unit(BinaryConv2d(2 * width, 2 * width, 1, pre_norm=True, method=method), nn.LeakyReLU(0.1)))
        self.head = BinaryConv2d(2 * width, 2 * width, (3, 1), padding=(1, 0), **kwargs)
        self.predict = nn.Conv2d(2 * width, 5, 1)
        self.neck = BinaryLinear(2 * width, width, method=method)
        self.classify = nn.Linear(width, 4)
        if extra:
            self.extra = BinaryConv2d(width, width, 1, method=method)

    def forward(self, x):
        x = self.body(self.stem(x))
        maps = [self.predict(self.head(y)) for y in (x, x[..., ::2, ::2])]
        return [*maps, self.classify(self.neck(x.mean((2, 3))))]


def net(seed=0, **kwargs):
    """A network as training would leave it, in evaluation mode."""
    torch.manual_seed(seed)
    return randomise_(Net(**kwargs)).eval()


def same(left, right):
    return len(left) == len(right) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))


class EarlierLayers(nn.Module):
    """Each module that had a packed form when ``every_layer.safetensors`` was written, with the options that change its
    tensors."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            BinaryConv2d(6, 8, 3, padding=1, groups=2, pad_value=-1, bias=False, method='recu'), nn.BatchNorm2d(8),
            BinaryConv2d(8, 8, (1, 3), padding='same', pre_norm=True, method=dict(type='dorefa', w_bits=2, a_bits=2)),
            BinaryConv2d(8, 8, 3, stride=2, method='binarydm'), AdaptiveConv2d(8, 8, 1),
            BinaryConv2d(8, 8, 1, method='reactnet', expand=dict(tau=2)))
        self.linear = BinaryLinear(8, 8, method='xnor')
        self.attention = BinaryAttention(8, 2, probability='multi_plane')
        self.lstm = BinaryLSTM(8, 4, gates='binary_if', norm=('static', 'ln'), bidirectional=True)
        self.conv_lstm = BinaryConvLSTM(8, 4)
        self.conv[0].fold_(torch.linspace(-1, 2, 8))

    def forward(self, x):
        x = self.conv(x)
        clip, _ = self.conv_lstm(x[:, None])
        tokens = self.linear(x.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens - 0.5, tokens + 0.5)
        return [clip, self.lstm(tokens)[0]]


class EveryLayer(EarlierLayers):
    """Each module that has a packed form."""

    def __init__(self):
        super().__init__()
        self.up = BinaryConvTranspose2d(4, 8, 3, 2, 1, method='bireal')
        self.sequence = BinaryConv1d(8, 8, 3, padding=1, method=dict(type='dorefa', w_bits=2, a_bits=2))
        self.video = BinaryConv3d(4, 8, 3, padding=1, pad_value=-1, method='reactnet')

    def forward(self, x):
        clip, tokens = super().forward(x)
        return [clip, tokens, self.up(clip[:, 0]), self.sequence(tokens.transpose(1, 2)), self.video(clip.transpose(1, 2))]
