"""Native architectures, and the layers under their registry names. Needs mmengine and mmcv; necks and heads also mmdet."""

from importlib.util import find_spec

from torch import nn

from ..layers import AdaptiveConv2d, BinaryConv2d, BinaryLinear, BinaryLSTM
from ..registry import MODELS
from .backbones import (
    BNNMLP,
    BNNSSDVGG,
    BNNBiReal50,
    BNNBNext,
    BNNCifarResNet,
    BNNConvNet,
    BNNMoBiNet,
    BNNReActNet,
    BNNResNet,
    BNNRows,
    BNNSequencer,
    BNNSwin,
    BNNVGGSmall,
    BNNViT,
)
from .blocks import BinaryConvModule
from .classifiers import BinaryClassifier, ClassifierHead, ImagePreprocessor
from .language import BinaryLanguageModel
from .residual_scale import ResidualScale

__all__ = [
    'BNNMLP',
    'BNNSSDVGG',
    'BNNBNext',
    'BNNBiReal50',
    'BNNCifarResNet',
    'BNNConvNet',
    'BNNMoBiNet',
    'BNNReActNet',
    'BNNResNet',
    'BNNRows',
    'BNNSequencer',
    'BNNSwin',
    'BNNVGGSmall',
    'BNNViT',
    'BinaryClassifier',
    'BinaryConvModule',
    'BinaryLanguageModel',
    'ClassifierHead',
    'ImagePreprocessor',
    'ResidualScale',
]

for layer in (AdaptiveConv2d, BinaryConv2d, BinaryLinear, BinaryLSTM, nn.LSTM):
    MODELS.register_module(module=layer)

if find_spec('mmdet') is not None:
    from .heads import BiDetRetinaHead, BiDetRoIHead, BiDetSSDHead, BNNRPNHead
    from .necks import BNNFPN, BNNBiLSTMNeck, BNNConvLSTMNeck

    __all__ += [part.__name__ for part in (BNNFPN, BNNBiLSTMNeck, BNNConvLSTMNeck, BNNRPNHead, BiDetRetinaHead, BiDetRoIHead,
                                           BiDetSSDHead)]
