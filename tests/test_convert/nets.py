"""Float models that the tests of this folder convert."""

import torch
from torch import nn


class SqueezeExcite(nn.Module):
    """Channel attention as in many backbones: its class name is what the rules know."""

    def __init__(self, channels):
        super().__init__()
        self.reduce, self.act, self.expand = nn.Conv2d(channels, 6, 1), nn.ReLU(), nn.Conv2d(6, channels, 1)

    def forward(self, x):
        return x * self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Block(nn.Module):
    """A residual block with ReLU6, grouped and dilated convolutions, channel attention and a 1x1 shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 2, 2, groups=2, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU6(inplace=True)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, (1, 3), padding=(0, 1)), nn.BatchNorm2d(outputs)
        self.se = SqueezeExcite(outputs)
        self.downsample = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(inputs, outputs, 1, bias=False))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.se(self.bn2(self.conv2(out))) + self.downsample(x))


class Net(nn.Module):
    """``[N, 3, H, W]`` (H, W even) -> ``[N, 5]``."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.layer1 = nn.Sequential(Block(8, 12, 2), nn.Sequential(nn.Conv2d(12, 12, 3, padding='same'), nn.BatchNorm2d(12)))
        self.neck = nn.Linear(12, 7)
        self.fc = nn.Linear(7, 5)

    def forward(self, x):
        x = self.layer1(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.neck(x.permute(0, 2, 3, 1)).mean((1, 2)))


BINARY = ['layer1.0.conv1', 'layer1.0.conv2', 'layer1.1.0', 'neck']
FLOAT = ['conv1', 'layer1.0.se.reduce', 'layer1.0.se.expand', 'layer1.0.downsample.1', 'fc']


def nest(path, layer):
    """A model in which ``layer`` is called ``path`` and one more convolution, ``other``, can become binary."""
    model = nn.ModuleDict({'other': nn.Conv2d(8, 8, 3)})
    *parents, name = path.split('.')
    where = model
    for parent in parents:
        where.add_module(parent, nn.ModuleDict())
        where = where[parent]
    where.add_module(name, layer)
    return model


def image(*shape, dtype=torch.float32):
    return torch.randn(*(shape or (2, 3, 10, 8))).to(dtype)
