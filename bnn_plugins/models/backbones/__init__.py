from .bnn_binarynet import BNNMLP, BNNConvNet
from .bnn_bireal50 import BNNBiReal50
from .bnn_bnext import BNNBNext
from .bnn_cifar_resnet import BNNCifarResNet
from .bnn_mobinet import BNNMoBiNet
from .bnn_reactnet import BNNReActNet
from .bnn_resnet import BNNResNet
from .bnn_rows import BNNRows
from .bnn_sequencer import BNNSequencer
from .bnn_vgg import BNNSSDVGG, BNNVGGSmall
from .bnn_vit import BNNSwin, BNNViT

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
]
