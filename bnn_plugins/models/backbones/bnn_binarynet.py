"""The networks of BinaryNet: an MLP for MNIST, a ConvNet for CIFAR-10; the first layer is binary, too."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...binarize.lookup import checked_arguments
from ...layers import BinaryConv2d, BinaryLinear, Tile
from ...registry import MODELS
from ..layer_factory import LayerFactory
from .base import BinaryBackbone
from .bnn_vgg import BNNVGGSmall


class HiddenLayer(nn.Module):
    """``act(norm(layer(x)))`` on ``[N, W(in)]``, dropout in front of it."""

    def __init__(self, factory: LayerFactory, layer: nn.Module, channels: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.layer = layer
        self.norm = factory.norm1d(channels)
        self.act = factory.nonlinearity(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.layer(self.dropout(x))))


def first_layer(layer: nn.Module, copies: int) -> nn.Module:
    """The layer that reads the image, repeated for the stream of an expansion."""
    return nn.Sequential(layer, Tile(copies)) if copies > 1 else layer


@MODELS.register_module()
class BNNMLP(BinaryBackbone):
    """``hidden`` binary layers of ``width``; the first multiplies real pixels by binary weights.

    Source: Hubara et al. 2016 (BinaryNet), arXiv 1602.02830, sec. 2.2 (MNIST: 3 layers of 4096).

    Args:
        in_features (int): pixels times channels of an image.
        width, hidden (int): size and number of the hidden layers.
        dropout (float): in front of each hidden layer but the first.
        method, act, expand: see :class:`.LayerFactory`.
        init_cfg: as in ``mmdet.ResNet``.

    Raises:
        ValueError: for expansions with groups: linear layers have none.
    """

    @checked_arguments
    def __init__(self, in_features: int = 784, width: int = 4096, hidden: int = 3, dropout: float = 0.0,
                 method: str | dict = 'binarynet', act: str = 'auto', expand: dict | None = None,
                 init_cfg: dict | list | None = None):
        super().__init__(LayerFactory(method, act, expand=expand), init_cfg)
        first = first_layer(BinaryLinear(in_features, width, bias=False, method='binaryconnect'), self.factory.copies)
        self.layers = nn.Sequential(HiddenLayer(self.factory, first, width))
        for _ in range(hidden - 1):
            self.layers.append(HiddenLayer(self.factory, self.factory.linear(width, width), width, dropout))
        self.width = width
        self.feat_dim = self.out_width(width)

    def maps(self, x: Tensor) -> tuple[Tensor]:
        """``[N, ...]`` -> ``([N, width],)``."""
        return self.output(self.layers(torch.flatten(x, 1)), self.width),


@MODELS.register_module()
class BNNConvNet(BNNVGGSmall):
    """BinaryNet's network for 32x32 images: 2x128C3-MP2-2x256C3-MP2-2x512C3-MP2, then binary layers of 1024, no shortcuts.

    The first convolution multiplies real pixels by binary weights. Source: arXiv 1602.02830, sec. 2.2.

    Args:
        hidden (Sequence[int]): sizes of the linear layers.
        image_size (int): of the square images.
        method, act, pad_value, expand, in_channels, base_channels, norm_cfg, init_cfg: as in :class:`BNNVGGSmall`.
    """

    @checked_arguments
    def __init__(self, hidden: Sequence[int] = (1024, 1024), image_size: int = 32, method: str | dict = 'binarynet',
                 act: str = 'auto', pad_value: int = 0, expand: dict | None = None, in_channels: int = 3,
                 base_channels: int = 128, norm_cfg: dict | None = None, init_cfg: dict | list | None = None):
        super().__init__(method, act, pad_value, expand, in_channels, base_channels, (2,), norm_cfg, init_cfg)
        features = self.widths[-1] * (image_size // 8)**2
        self.layers = nn.Sequential()
        for width in hidden:
            self.layers.append(HiddenLayer(self.factory, self.factory.linear(features, width), width))
            features = width
        self.features = features
        self.feat_dim = self.out_width(features)

    def make_stem(self, in_channels: int, channels: int) -> nn.Module:
        conv = BinaryConv2d(in_channels, channels, 3, padding=1, bias=False, method='binaryconnect')
        return nn.Sequential(first_layer(conv, self.factory.copies), self.factory.norm(channels, spread=True)[1],
                             self.factory.nonlinearity(channels))

    def maps(self, x: Tensor) -> tuple[Tensor]:
        """``[N, in_channels, image_size, image_size]`` -> ``([N, hidden[-1]],)``."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.output(self.layers(torch.flatten(x, 1)), self.features),
